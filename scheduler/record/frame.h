// The frames of a recording's file: see proto/record.proto.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "proto/record.pb.h"

namespace penstock::scheduler {

struct FrameHead {
  uint32_t bytes;  // of the payload
  uint32_t checksum;
};

uint32_t FrameChecksum(std::string_view payload);
// Overwrites *frame (its memory is reused).
void MakeFrame(const record::Block& block, std::string* frame);

}  // namespace penstock::scheduler
