// The API key of both APIs.
#pragma once

#include <string>
#include <string_view>

#include "common/status.h"

namespace penstock::router {

// `header` is the Authorization header or metadata. UNAUTHENTICATED unless it is "Bearer <key>";
// an empty key admits everyone. Takes the same time wherever the keys differ.
inline absl::Status CheckApiKey(const std::string& key, std::string_view header) {
  if (key.empty()) return absl::OkStatus();
  constexpr std::string_view kScheme = "Bearer ";
  std::string_view given;
  if (header.substr(0, kScheme.size()) == kScheme) given = header.substr(kScheme.size());
  unsigned char different = given.size() != key.size();
  for (size_t i = 0; i < key.size(); ++i) {
    different |= static_cast<unsigned char>(key[i] ^ (i < given.size() ? given[i] : 0));
  }
  if (different == 0) return absl::OkStatus();
  return absl::UnauthenticatedError(
      header.empty() ? "this server needs an API key: send \"Authorization: Bearer <key>\""
                     : "the API key is wrong");
}

}  // namespace penstock::router
