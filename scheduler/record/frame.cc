#include "scheduler/record/frame.h"

#include <bit>
#include <boost/crc.hpp>
#include <cstring>

namespace penstock::scheduler {

static_assert(std::endian::native == std::endian::little);

uint32_t FrameChecksum(std::string_view payload) {
  const auto bytes = static_cast<uint32_t>(payload.size());
  boost::crc_32_type crc;
  crc.process_bytes(&bytes, sizeof(bytes));
  crc.process_bytes(payload.data(), payload.size());
  return crc.checksum();
}

void MakeFrame(const record::Block& block, std::string* frame) {
  frame->assign(sizeof(FrameHead), '\0');
  block.AppendToString(frame);
  const std::string_view payload = std::string_view(*frame).substr(sizeof(FrameHead));
  const FrameHead head{static_cast<uint32_t>(payload.size()), FrameChecksum(payload)};
  std::memcpy(frame->data(), &head, sizeof(head));
}

}  // namespace penstock::scheduler
