#include "router/api/http/http_message.h"

#include <fmt/format.h>

#include <boost/beast/http/status.hpp>

#include "router/api/http/openai_response.h"
#include "router/engine/retry_after.h"

namespace penstock::router {

std::string BuildResponse(int status, std::string_view content_type, std::string_view body,
                          bool keep_alive, std::string_view headers) {
  const auto reason = boost::beast::http::obsolete_reason(
      boost::beast::http::int_to_status(static_cast<unsigned>(status)));
  return fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{}{}\r\n{}",
                     status, std::string_view(reason.data(), reason.size()), content_type,
                     body.size(), keep_alive ? "" : "Connection: close\r\n", headers, body);
}

std::string BuildError(int status, const absl::Status& error, bool keep_alive,
                       std::string_view headers) {
  std::string more(headers);
  if (const uint32_t seconds = RetryAfter(error); seconds != 0) {
    more += fmt::format("Retry-After: {}\r\n", seconds);
  }
  if (status == 401) more += "WWW-Authenticate: Bearer\r\n";
  return BuildResponse(status, "application/json", ErrorBody(error), keep_alive, more);
}

}  // namespace penstock::router
