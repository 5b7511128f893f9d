// The one Python interpreter in the process: Debian's own, which has Debian's Jinja2, or the copy
// of both that a bundle (tools/package) brings along. Internal to chat/.
#pragma once

#include <pybind11/embed.h>

#include "absl/status/statusor.h"

namespace penstock::router {

// Starts the interpreter at the first call, in isolation: no environment variable, user folder or
// other Python on PATH has a say. It is never stopped. Returns the module made of renderer.py,
// which lives as long as the process. Any thread may call it, without the GIL; the GIL is free on
// return.
//
// FailedPrecondition, saying what to install, if Python or Jinja2 isn't there.
absl::StatusOr<pybind11::handle> RendererModule();

}  // namespace penstock::router
