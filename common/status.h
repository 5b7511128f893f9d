// Status helpers: every fallible function returns absl::Status or absl::StatusOr and returns early.
//
// Errors are made as `return InvalidArgument("temperature {} is negative: give 0 or more", t);`, in
// fmt's format (Debian's abseil has a string_view of its own, which StrCat and std::string_view do
// not share).
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PENSTOCK_CONCAT_INNER(a, b) a##b
#define PENSTOCK_CONCAT(a, b) PENSTOCK_CONCAT_INNER(a, b)

// RETURN_IF_ERROR(expr): returns from the function with the status of `expr` if it is not OK.
#define RETURN_IF_ERROR(expr)                                                                 \
  do {                                                                                        \
    if (absl::Status penstock_status = (expr); !penstock_status.ok()) return penstock_status; \
  } while (0)

// ASSIGN_OR_RETURN(lhs, expr): assigns the value of the StatusOr `expr`, or returns its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL(PENSTOCK_CONCAT(penstock_statusor_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL(statusor, lhs, expr) \
  auto statusor = (expr);                          \
  if (!statusor.ok()) return statusor.status();    \
  lhs = std::move(statusor).value()

namespace penstock {

#define PENSTOCK_ERROR_MAKER(Name, code)                                         \
  template <typename... Args>                                                    \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {        \
    return absl::Status(code, fmt::format(format, std::forward<Args>(args)...)); \
  }
PENSTOCK_ERROR_MAKER(InvalidArgument, absl::StatusCode::kInvalidArgument)
PENSTOCK_ERROR_MAKER(NotFound, absl::StatusCode::kNotFound)
PENSTOCK_ERROR_MAKER(AlreadyExists, absl::StatusCode::kAlreadyExists)
PENSTOCK_ERROR_MAKER(FailedPrecondition, absl::StatusCode::kFailedPrecondition)
PENSTOCK_ERROR_MAKER(ResourceExhausted, absl::StatusCode::kResourceExhausted)
PENSTOCK_ERROR_MAKER(OutOfRange, absl::StatusCode::kOutOfRange)
PENSTOCK_ERROR_MAKER(Unavailable, absl::StatusCode::kUnavailable)
PENSTOCK_ERROR_MAKER(Unimplemented, absl::StatusCode::kUnimplemented)
PENSTOCK_ERROR_MAKER(DeadlineExceeded, absl::StatusCode::kDeadlineExceeded)
PENSTOCK_ERROR_MAKER(Aborted, absl::StatusCode::kAborted)
PENSTOCK_ERROR_MAKER(Cancelled, absl::StatusCode::kCancelled)
PENSTOCK_ERROR_MAKER(Internal, absl::StatusCode::kInternal)
#undef PENSTOCK_ERROR_MAKER

// The status's message as a standard string.
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

}  // namespace penstock
