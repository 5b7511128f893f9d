#include <gtest/gtest.h>

#include "tools/penstock/bench/http_response.h"
#include "tools/penstock/bench/http_transport.h"

namespace penstock::bench {
namespace {

constexpr std::string_view kChunked =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer: x\r\n\r\n"
    "5\r\nhello\r\n7;extension=1\r\n, world\r\n0\r\nTrailer: 1\r\n\r\n";

TEST(HttpResponseTest, ChunksInPiecesOfEverySize) {
  for (size_t size = 1; size <= kChunked.size(); ++size) {
    HttpResponse response;
    std::string body;
    for (size_t at = 0; at < kChunked.size(); at += size) {
      ASSERT_FALSE(response.done());
      ASSERT_TRUE(response.Feed(kChunked.substr(at, size), &body).ok());
    }
    EXPECT_TRUE(response.done());
    EXPECT_EQ(response.status(), 200);
    EXPECT_EQ(body, "hello, world");
    EXPECT_TRUE(response.keep_alive());
  }
}

TEST(HttpResponseTest, LengthAndClose) {
  HttpResponse response;
  std::string body;
  ASSERT_TRUE(
      response
          .Feed("HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!",
                &body)
          .ok());
  EXPECT_TRUE(response.done());
  EXPECT_EQ(response.status(), 404);
  EXPECT_EQ(body, "no!");
  EXPECT_FALSE(response.keep_alive());
  EXPECT_FALSE(response.Feed("more", &body).ok());
}

TEST(HttpResponseTest, UntilTheConnectionCloses) {
  HttpResponse response;
  std::string body;
  ASSERT_TRUE(response.Feed("HTTP/1.0 200 OK\r\n\r\nabc", &body).ok());
  EXPECT_FALSE(response.done());
  EXPECT_TRUE(response.Close().ok());
  EXPECT_TRUE(response.done());
  EXPECT_EQ(body, "abc");
}

TEST(HttpResponseTest, WhatIsNotHttpIsAnError) {
  std::string body;
  for (const char* bad :
       {"SSH-2.0-OpenSSH\r\n", "HTTP/1.1 abc\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"}) {
    EXPECT_TRUE(absl::IsInternal(HttpResponse().Feed(bad, &body))) << bad;
  }
  HttpResponse cut;
  ASSERT_TRUE(cut.Feed(kChunked.substr(0, kChunked.size() - 4), &body).ok());
  EXPECT_FALSE(cut.Close().ok());
}

TEST(StreamLineTest, TokensUsageAndErrors) {
  EXPECT_TRUE(ParseStreamLine(R"(data: {"choices":[{"text":"a"}]})").has_output);
  EXPECT_TRUE(ParseStreamLine(R"(data: {"choices": [{"text":"a"}],"usage":null})").has_output);
  for (const char* none : {"", "data: [DONE]", ": ping", R"(data: {"choices":[]})"}) {
    EXPECT_FALSE(ParseStreamLine(none).has_output) << none;
  }
  const StreamLine usage =
      ParseStreamLine(R"(data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}})");
  EXPECT_FALSE(usage.has_output);
  EXPECT_EQ(usage.total_tokens, 5);
  EXPECT_EQ(usage.prompt_tokens, 3);
  EXPECT_NE(ParseStreamLine(R"(data: {"error":{"message":"oh"}})").error.find("oh"),
            std::string::npos);
  EXPECT_FALSE(ParseStreamLine(R"(data: {"error":)").error.empty());
}

}  // namespace
}  // namespace penstock::bench
