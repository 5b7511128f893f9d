// Tells the supervisor how far a process has come: sd_notify(3)'s protocol, so that systemd and the
// `penstock` launcher both understand it. Does nothing where no NOTIFY_SOCKET is set. Thread-safe.
#pragma once

#include <string_view>

namespace penstock {

// For example "READY=1" or "STATUS=loading weights, 40%".
void NotifySupervisor(std::string_view state);

}  // namespace penstock
