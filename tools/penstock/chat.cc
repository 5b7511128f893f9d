// penstock chat: a conversation in the terminal, over gRPC.

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>

#include "proto/inference.grpc.pb.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/flags.h"

namespace penstock::launcher {
namespace {

constexpr Flag kFlags[] = {
    {"address", "HOST:PORT", "127.0.0.1:50051", kLauncher, "the server's gRPC address"},
    {"system", "TEXT", "", kLauncher, "a system prompt"},
    {"temperature", "T", "0.7", kLauncher, "0: always the likeliest word"},
    {"max-tokens", "N", "512", kLauncher, "longest answer"},
    {"api-key", "KEY", "", kLauncher, "if the server asks for one"},
    {"help", "", "", kLauncher, "this"},
};

// Ctrl-C ends the answer that is being written, or, at the prompt, the program.
std::atomic<grpc::ClientContext*> current_call{nullptr};

void OnInterrupt(int) {
  if (grpc::ClientContext* call = current_call.load()) {
    call->TryCancel();
  } else {
    _exit(0);
  }
}

// Streams the answer to the terminal and returns it.
grpc::Status Answer(v1::Inference::Stub& stub, const CommandLine& line,
                    const v1::ChatRequest& request, std::string* answer) {
  grpc::ClientContext context;
  if (line.Has("api-key")) context.AddMetadata("authorization", "Bearer " + line.Get("api-key"));
  current_call = &context;
  auto reader = stub.Chat(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    *answer += response.text();
    fmt::print("{}", response.text());
    std::fflush(stdout);
  }
  grpc::Status status = reader->Finish();
  current_call = nullptr;
  fmt::print("\n");
  return status;
}

int Converse(const CommandLine& line) {
  auto channel = grpc::CreateChannel(line.Get("address"), grpc::InsecureChannelCredentials());
  auto stub = v1::Inference::NewStub(channel);
  v1::ChatRequest request;
  if (line.Has("system")) {
    auto* message = request.add_messages();
    message->set_role("system");
    message->set_content(line.Get("system"));
  }
  try {
    request.mutable_sampling()->set_temperature(std::stof(line.Get("temperature")));
    request.mutable_sampling()->set_max_tokens(std::stoi(line.Get("max-tokens")));
  } catch (const std::exception&) {
    fmt::print(stderr, "penstock chat: --temperature and --max-tokens must be numbers\n");
    return 2;
  }
  std::signal(SIGINT, OnInterrupt);
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) fmt::print("Talking to {}. An empty line or Ctrl-D ends.\n", line.Get("address"));
  std::string text;
  while (true) {
    if (terminal) fmt::print("> ");
    std::fflush(stdout);
    if (!std::getline(std::cin, text) || text.empty()) return 0;
    auto* message = request.add_messages();
    message->set_role("user");
    message->set_content(text);
    std::string answer;
    const grpc::Status status = Answer(*stub, line, request, &answer);
    if (!status.ok() && status.error_code() != grpc::StatusCode::CANCELLED) {
      fmt::print(stderr, "penstock chat: {}\n", status.error_message());
      if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
        fmt::print(stderr, "Is a server running at {}? Start one with: penstock serve MODEL\n",
                   line.Get("address"));
      }
      return 1;
    }
    auto* reply = request.add_messages();
    reply->set_role("assistant");
    reply->set_content(answer);
  }
}

}  // namespace

int Chat(std::span<char* const> args) {
  absl::StatusOr<CommandLine> line = Parse(kFlags, args);
  if (!line.ok() || !line->positional.empty()) {
    fmt::print(stderr, "penstock chat: {}\n",
               line.ok() ? "unexpected \"" + line->positional[0] + "\": --help lists the flags"
                         : Message(line.status()));
    return 2;
  }
  if (line->Has("help")) {
    fmt::print("usage: penstock chat [flags]\n\nTalks to a running server.\n\n{}",
               Describe(kFlags));
    return 0;
  }
  return Converse(*line);
}

}  // namespace penstock::launcher
