// stream-client: many streams at once against a running server, from one thread, so that the client
// takes little of the CPU it shares with what it measures. Prints one JSON object.
//
//   stream-client --grpc HOST:PORT | --http HOST:PORT  [--streams N] [--tokens N] [--rounds N]
//   [--prompt TEXT]
//
// Every stream asks for `tokens` tokens (ignore_eos), `rounds` times in a row. Reported: generated
// tokens over wall time, messages (gRPC messages or SSE chunks), time to first message, gaps
// between messages, whole requests.

#include <arpa/inet.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "proto/inference.grpc.pb.h"

namespace penstock::bench {
namespace {

double NowMs() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Options {
  std::string address;
  bool grpc = false;
  int streams = 256;
  int tokens = 256;
  int rounds = 4;
  std::string prompt = "Tell me a story";
};

struct Totals {
  int64_t tokens = 0;
  int64_t messages = 0;
  int64_t bytes = 0;
  int64_t failed = 0;
  std::vector<double> first_ms, gap_ms, request_ms;
};

// The times of one request's messages.
struct Clock {
  double begin = 0, last = 0;
  bool any = false;
  void Start() { *this = Clock{NowMs(), 0, false}; }
  void Message(Totals& totals) {
    const double now = NowMs();
    (any ? totals.gap_ms : totals.first_ms).push_back(now - (any ? last : begin));
    last = now;
    any = true;
    ++totals.messages;
  }
  void End(Totals& totals) const { totals.request_ms.push_back(NowMs() - begin); }
};

// ---- gRPC, on one completion queue ----

struct GrpcStream {
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
  v1::GenerateResponse response;
  grpc::Status status;
  Clock clock;
  int rounds_left = 0;
  enum { kStarting, kReading, kFinishing } state = kStarting;
};

void RunGrpc(const Options& options, Totals& totals) {
  grpc::CompletionQueue queue;
  auto channel = grpc::CreateChannel(options.address, grpc::InsecureChannelCredentials());
  auto stub = v1::Inference::NewStub(channel);
  v1::GenerateRequest request;
  request.set_text(options.prompt);
  request.mutable_sampling()->set_max_tokens(options.tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  std::vector<GrpcStream> streams(options.streams);
  auto start = [&](GrpcStream& stream) {
    stream.reader.reset();  // lives in memory of its context's call
    stream.context = std::make_unique<grpc::ClientContext>();
    stream.state = GrpcStream::kStarting;
    stream.clock.Start();
    stream.reader = stub->AsyncGenerate(stream.context.get(), request, &queue, &stream);
  };
  for (GrpcStream& stream : streams) {
    stream.rounds_left = options.rounds;
    start(stream);
  }
  int running = options.streams;
  void* tag;
  bool ok;
  while (running > 0 && queue.Next(&tag, &ok)) {
    auto& stream = *static_cast<GrpcStream*>(tag);
    if (stream.state == GrpcStream::kFinishing) {
      stream.clock.End(totals);
      if (!stream.status.ok()) {
        ++totals.failed;
        fmt::print(stderr, "{}\n", stream.status.error_message());
      }
      if (--stream.rounds_left > 0 && stream.status.ok()) {
        start(stream);
      } else {
        --running;
      }
      continue;
    }
    if (stream.state == GrpcStream::kReading && ok) {
      stream.clock.Message(totals);
      totals.bytes += static_cast<int64_t>(stream.response.text().size());
      if (stream.response.has_usage()) totals.tokens += stream.response.usage().completion_tokens();
    }
    if (ok) {
      stream.state = GrpcStream::kReading;
      stream.reader->Read(&stream.response, tag);
    } else {
      stream.state = GrpcStream::kFinishing;
      stream.reader->Finish(&stream.status, tag);
    }
  }
}

// ---- HTTP with SSE, on one epoll ----

struct HttpStream {
  int fd = -1;
  std::string tail;  // the last bytes seen, for what spans two reads
  Clock clock;
  int rounds_left = 0;
};

int Connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + colon + 1)));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &peer.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) != 0) {
    fmt::print(stderr, "cannot connect to {}: {}\n", address, strerror(errno));
    std::exit(1);
  }
  return fd;
}

int64_t Count(std::string_view text, std::string_view what) {
  int64_t count = 0;
  for (size_t at = text.find(what); at != std::string_view::npos;
       at = text.find(what, at + what.size()))
    ++count;
  return count;
}

// Takes in what one read brought; true when the response is whole.
bool TakeHttp(HttpStream& stream, std::string_view data, Totals& totals) {
  totals.bytes += static_cast<int64_t>(data.size());
  const size_t old = stream.tail.size();
  stream.tail.append(data);
  const std::string_view text = stream.tail;
  const int64_t chunks = Count(text.substr(old < 5 ? 0 : old - 5), "data: {");
  for (int64_t i = 0; i < chunks; ++i) stream.clock.Message(totals);
  if (text.find("[DONE]") != std::string_view::npos) {
    const size_t at = text.rfind("\"completion_tokens\":");
    if (at == std::string_view::npos) {
      ++totals.failed;
    } else {
      totals.tokens += std::atoll(text.data() + at + 20);
    }
    stream.clock.End(totals);
    return true;
  }
  if (stream.tail.size() > 4096) stream.tail.erase(0, stream.tail.size() - 1024);
  return false;
}

void RunHttp(const Options& options, Totals& totals) {
  const std::string body = fmt::format(
      R"({{"prompt":"{}","max_tokens":{},"ignore_eos":true,"stream":true,"stream_options":{{"include_usage":true}}}})",
      options.prompt, options.tokens);
  const std::string request = fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: "
      "application/json\r\nContent-Length: {}\r\n\r\n{}",
      options.address, body.size(), body);
  const int epoll = epoll_create1(0);
  std::vector<HttpStream> streams(options.streams);
  auto start = [&](HttpStream& stream) {
    stream.tail.clear();
    stream.clock.Start();
    if (write(stream.fd, request.data(), request.size()) != static_cast<ssize_t>(request.size()))
      std::abort();
  };
  for (HttpStream& stream : streams) {
    stream.fd = Connect(options.address);
    stream.rounds_left = options.rounds;
    epoll_event event{EPOLLIN, {.ptr = &stream}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, stream.fd, &event);
    start(stream);
  }
  int running = options.streams;
  std::vector<char> buffer(1 << 16);
  epoll_event events[64];
  while (running > 0) {
    const int ready = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < ready; ++i) {
      auto& stream = *static_cast<HttpStream*>(events[i].data.ptr);
      const ssize_t bytes = read(stream.fd, buffer.data(), buffer.size());
      const bool lost = bytes <= 0;
      if (lost) {
        ++totals.failed;
        stream.rounds_left = 1;
      } else if (!TakeHttp(stream, {buffer.data(), static_cast<size_t>(bytes)}, totals)) {
        continue;
      }
      if (--stream.rounds_left > 0) {
        start(stream);
      } else {
        close(stream.fd);
        --running;
      }
    }
  }
  close(epoll);
}

std::string Quantiles(std::vector<double> values) {
  if (values.empty()) return "null";
  std::sort(values.begin(), values.end());
  auto at = [&](double q) {
    return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
  };
  return fmt::format(R"({{"p50":{:.4f},"p95":{:.4f},"p99":{:.4f},"max":{:.4f}}})", at(0.5),
                     at(0.95), at(0.99), at(1));
}

bool ParseOptions(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view flag = argv[i];
    const char* value = argv[i + 1];
    if (flag == "--grpc" || flag == "--http") {
      options.address = value;
      options.grpc = flag == "--grpc";
    } else if (flag == "--streams") {
      options.streams = std::atoi(value);
    } else if (flag == "--tokens") {
      options.tokens = std::atoi(value);
    } else if (flag == "--rounds") {
      options.rounds = std::atoi(value);
    } else if (flag == "--prompt") {
      options.prompt = value;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && !options.address.empty() && options.streams > 0 && options.tokens > 0 &&
         options.rounds > 0;
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) {
  using namespace penstock::bench;
  Options options;
  if (!ParseOptions(argc, argv, options)) {
    fmt::print(
        stderr,
        "usage: stream-client --grpc|--http HOST:PORT [--streams N] [--tokens N] [--rounds N] "
        "[--prompt TEXT]\n");
    return 2;
  }
  Totals totals;
  const double begin = NowMs();
  options.grpc ? RunGrpc(options, totals) : RunHttp(options, totals);
  const double seconds = (NowMs() - begin) / 1e3;
  fmt::print(
      R"({{"api":"{}","streams":{},"tokens_a_request":{},"seconds":{:.3f},"tokens":{},"tokens_per_s":{:.0f},)"
      R"("messages":{},"bytes":{},"failed":{},"first_ms":{},"gap_ms":{},"request_ms":{}}})"
      "\n",
      options.grpc ? "grpc" : "http", options.streams, options.tokens, seconds, totals.tokens,
      static_cast<double>(totals.tokens) / seconds, totals.messages, totals.bytes, totals.failed,
      Quantiles(totals.first_ms), Quantiles(totals.gap_ms), Quantiles(totals.request_ms));
  return totals.failed == 0 ? 0 : 1;
}
