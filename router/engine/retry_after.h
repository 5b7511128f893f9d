// When a client that was turned away may try again: a number that goes with a status.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "common/status.h"

namespace penstock::router {

inline constexpr char kRetryAfterPayload[] = "penstock/retry-after-s";

inline void SetRetryAfter(uint32_t seconds, absl::Status* status) {
  status->SetPayload(kRetryAfterPayload, absl::Cord(std::to_string(seconds)));
}

// Seconds; at least 1 where trying again may help (RESOURCE_EXHAUSTED, UNAVAILABLE), 0 elsewhere.
inline uint32_t RetryAfter(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnavailable(status)) return 0;
  uint32_t seconds = 0;
  if (const auto payload = status.GetPayload(kRetryAfterPayload)) {
    (void)absl::SimpleAtoi(std::string(*payload), &seconds);
  }
  return std::max<uint32_t>(seconds, 1);
}

}  // namespace penstock::router
