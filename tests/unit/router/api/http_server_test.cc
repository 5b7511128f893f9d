#include "router/api/http/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace penstock::router {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// Hands out its bytes when a test says so.
class StepResponse final : public HttpResponse {
 public:
  explicit StepResponse(std::weak_ptr<HttpNotifier> notifier) : notifier_(std::move(notifier)) {}

  void Add(const std::string& bytes, bool last) {
    {
      std::lock_guard lock(mutex_);
      bytes_ += bytes;
      last_ = last;
    }
    if (const auto notifier = notifier_.lock()) notifier->Notify();
  }
  bool Produce(std::string* out) override {
    std::lock_guard lock(mutex_);
    *out += std::exchange(bytes_, "");
    return last_;
  }
  void OnDisconnect() override {
    std::lock_guard lock(mutex_);
    left_ = true;
    changed_.notify_all();
  }
  bool WaitLeft() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return left_; });
  }

 private:
  const std::weak_ptr<HttpNotifier> notifier_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string bytes_;
  bool last_ = false;
  bool left_ = false;
};

// /echo answers with the body, /step with what the test adds.
class TestHandler final : public HttpHandler {
 public:
  std::shared_ptr<HttpResponse> Handle(HttpRequest request,
                                       std::weak_ptr<HttpNotifier> notifier) override {
    if (request.path == "/step") {
      auto step = std::make_shared<StepResponse>(std::move(notifier));
      std::lock_guard lock(mutex_);
      step_ = step;
      changed_.notify_all();
      return step;
    }
    return std::make_shared<WholeResponse>(
        BuildResponse(200, "text/plain", request.method + " " + request.path + " " + request.body,
                      request.keep_alive));
  }
  void OnBadRequest(int) override {}
  std::shared_ptr<StepResponse> WaitStep() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(20), [&] { return step_ != nullptr; }));
    return std::exchange(step_, nullptr);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<StepResponse> step_;
};

class Client {
 public:
  explicit Client(int port, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer != 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval timeout = {.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Client() { Close(); }

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void Send(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;  // the server closed: its answer says why
      sent += static_cast<size_t>(n);
    }
  }
  // Reads until what came has `count` times `mark` in it.
  std::string ReadUntil(const std::string& mark, int count = 1) {
    std::string all;
    while (true) {
      int found = 0;
      for (size_t at = all.find(mark); at != std::string::npos; at = all.find(mark, at + 1))
        ++found;
      if (found >= count) return all;
      char bytes[4096];
      const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
      if (n <= 0) {
        ADD_FAILURE() << "the connection ended after: " << all;
        return all;
      }
      all.append(bytes, static_cast<size_t>(n));
    }
  }
  std::string ReadToEnd() {
    std::string all;
    char bytes[65536];
    for (ssize_t n; (n = recv(fd_, bytes, sizeof(bytes), 0)) > 0;) {
      all.append(bytes, static_cast<size_t>(n));
    }
    return all;
  }

 private:
  int fd_ = -1;
};

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    HttpOptions options{.host = "127.0.0.1", .port = 0, .num_threads = 2, .limits = {}};
    options.limits.max_body_bytes = 1000;
    options.limits.request = std::chrono::seconds(1);
    auto server = HttpServer::Start(handler_, options);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  static std::string Post(const std::string& body) {
    return fmt::format("POST /echo?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{}",
                       body.size(), body);
  }

  TestHandler handler_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, KeepsConnectionsAlive) {
  Client client(server_->port());
  for (const std::string body : {"one", "two"}) {
    client.Send(Post(body));
    const std::string answer = client.ReadUntil("POST /echo " + body);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  }
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Client client(server_->port());
  client.Send(Post("1") + Post("2") + Post("3"));
  const std::string answers = client.ReadUntil("POST /echo 3");
  EXPECT_LT(answers.find("POST /echo 1"), answers.find("POST /echo 2"));
}

TEST_F(HttpServerTest, PipelinedRequestWaitsForAStream) {
  Client client(server_->port());
  client.Send("POST /step HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + Post("after"));
  const auto step = handler_.WaitStep();
  step->Add("first ", false);
  EXPECT_EQ(client.ReadUntil("first "), "first ");
  step->Add("last ", true);
  EXPECT_THAT(client.ReadUntil("POST /echo after"), StartsWith("last HTTP/1.1 200"));
}

TEST_F(HttpServerTest, TakesABodyInPiecesAndInChunks) {
  Client client(server_->port());
  for (const char c : Post("slow")) client.Send(std::string(1, c));
  client.ReadUntil("POST /echo slow");
  client.Send(
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  client.ReadUntil("POST /echo abcde");
}

TEST_F(HttpServerTest, SaysContinue) {
  Client client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  client.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  client.ReadUntil("POST /echo ok");
}

TEST_F(HttpServerTest, RefusesLargeBodiesAndLargeHeaders) {
  Client body(server_->port());
  body.Send(Post(std::string(4'000'000, 'x')));
  EXPECT_THAT(body.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 413 "), HasSubstr("--max-body-mb")));
  Client chunks(server_->port());
  chunks.Send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
              std::string(2000, 'x'));
  EXPECT_THAT(chunks.ReadToEnd(), StartsWith("HTTP/1.1 413 "));
  Client header(server_->port());
  header.Send("GET / HTTP/1.1\r\nX: " + std::string(100'000, 'x') + "\r\n\r\n");
  EXPECT_THAT(header.ReadToEnd(), StartsWith("HTTP/1.1 431 "));
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttp) {
  Client client(server_->port());
  client.Send("\x16\x03\x01 hello\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 400 "));
}

TEST_F(HttpServerTest, GivesUpOnARequestThatStopsHalfway) {
  Client client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nContent-Le");
  EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
}

TEST_F(HttpServerTest, ClosesWhenTheClientWantsIt) {
  Client client(server_->port());
  client.Send("GET /a HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), EndsWith("GET /a "));
  Client old(server_->port());
  old.Send("GET /b HTTP/1.0\r\n\r\n");
  EXPECT_THAT(old.ReadToEnd(), EndsWith("GET /b "));
}

TEST_F(HttpServerTest, NoticesAClientThatLeaves) {
  Client client(server_->port());
  client.Send("GET /step HTTP/1.1\r\n\r\n");
  const auto step = handler_.WaitStep();
  step->Add("first", false);
  client.ReadUntil("first");
  client.Close();
  EXPECT_TRUE(step->WaitLeft());
}

TEST_F(HttpServerTest, ASlowReaderHoldsUpNobody) {
  Client slow(server_->port(), 4096);
  slow.Send("GET /step HTTP/1.1\r\nConnection: close\r\n\r\n");
  const auto step = handler_.WaitStep();
  const std::string much(8 << 20, 'x');
  step->Add(much, false);
  for (int i = 0; i < 4; ++i) {  // both I/O threads
    Client other(server_->port());
    other.Send(Post("quick"));
    other.ReadUntil("POST /echo quick");
  }
  step->Add("end", true);
  EXPECT_EQ(slow.ReadToEnd().size(), much.size() + 3);
}

TEST_F(HttpServerTest, StopLetsResponsesEnd) {
  Client client(server_->port());
  client.Send("GET /step HTTP/1.1\r\n\r\n");
  const auto step = handler_.WaitStep();
  std::thread stop(
      [&] { server_->Stop(std::chrono::steady_clock::now() + std::chrono::seconds(20)); });
  step->Add("whole", true);
  EXPECT_EQ(client.ReadToEnd(), "whole");
  stop.join();
}

TEST_F(HttpServerTest, APortInUseIsAnError) {
  const auto second =
      HttpServer::Start(handler_, {.host = "127.0.0.1", .port = server_->port(), .limits = {}});
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(Message(second.status()), HasSubstr("--port"));
  const auto nowhere = HttpServer::Start(handler_, {.host = "300.1.1.1", .port = 0, .limits = {}});
  EXPECT_TRUE(absl::IsInvalidArgument(nowhere.status()));
}

TEST_F(HttpServerTest, ManyClientsAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      Client client(server_->port());
      for (int i = 0; i < 200; ++i) {
        const std::string body = fmt::format("{}-{}.", t, i);
        client.Send(Post(body));
        client.ReadUntil("POST /echo " + body);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace penstock::router
