#include "common/shm/segment.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/file_mapping.hpp>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <new>
#include <thread>

#include "common/log.h"

namespace penstock::shm {
namespace {

constexpr std::string_view kDirectory = "/dev/shm";
// Presence locks: byte r is rank r, this one the scheduler. They lie beyond any data that matters
// to a lock.
constexpr off_t kSchedulerByte = kMaxRanks;

constexpr uint64_t RoundUpPage(uint64_t bytes) { return (bytes + 4095) & ~uint64_t{4095}; }

struct FdCloser {
  int fd;
  ~FdCloser() {
    if (fd >= 0) close(fd);
  }
};

absl::Status ErrnoStatus(std::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, fmt::format("{} {}", what, path));
}

struct flock LockOf(short type, off_t byte) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// Whether somebody has the presence. Asks for a read lock, so that threads in WaitForRankDeath,
// which have one for a moment, do not count.
bool IsLocked(int fd, off_t byte) {
  struct flock lock = LockOf(F_RDLCK, byte);
  return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

// Takes a presence; false if another process has it.
bool TryLock(int fd, off_t byte) {
  while (true) {
    struct flock lock = LockOf(F_WRLCK, byte);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return true;
    if (IsLocked(fd, byte)) return false;
    // A thread that waited for the death of the one before us has not yet let go.
    std::this_thread::yield();
  }
}

bool AnyRankLocked(int fd) {
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    if (IsLocked(fd, rank)) return true;
  }
  return false;
}

absl::Status CheckEngineId(std::string_view id) {
  const bool ok =
      !id.empty() && id.size() < kMaxEngineIdBytes - 1 &&
      std::all_of(id.begin(), id.end(), [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
      });
  if (ok) return absl::OkStatus();
  return InvalidArgument("engine id \"{}\" must be 1 to 62 letters, digits, '-', '_' or '.'", id);
}

absl::Status CheckGeometry(const Geometry& g) {
  if (g.num_ranks < 1 || g.num_ranks > kMaxRanks) {
    return InvalidArgument("number of ranks {} is not in 1..{}", g.num_ranks, kMaxRanks);
  }
  if (g.num_slots < 1 || g.num_slots > 65536) {
    return InvalidArgument("--max-num-seqs {} is not in 1..65536", g.num_slots);
  }
  if (!std::has_single_bit(g.plan_ring_bytes) || !std::has_single_bit(g.result_ring_bytes) ||
      g.plan_ring_bytes < 4096 || g.result_ring_bytes < 4096) {
    return InvalidArgument("ring sizes must be powers of two of at least 4096 bytes");
  }
  return absl::OkStatus();
}

// Fills in sizes and offsets; everything else is zero, as fresh shared memory is.
void LayOut(const Geometry& g, SegmentHeader* header) {
  header->magic = kMagic;
  header->layout_version = kLayoutVersion;
  header->header_bytes = sizeof(SegmentHeader);
  header->slot_bytes = sizeof(RequestSlot);
  header->rank_bytes = sizeof(RankArea);
  header->geometry = g;
  uint64_t offset = RoundUpPage(sizeof(SegmentHeader));
  auto place = [&offset](uint64_t bytes) {
    const uint64_t at = offset;
    offset += RoundUpPage(bytes);
    return at;
  };
  header->slots_offset = place(sizeof(RequestSlot) * uint64_t{g.num_slots});
  header->ranks_offset = place(sizeof(RankArea) * uint64_t{g.num_ranks});
  header->plan_ring_offset = place(g.plan_ring_bytes);
  header->result_rings_offset = place(g.result_ring_bytes * g.num_ranks);
  header->arena_offset = place(g.arena_bytes);
  header->collective_offset = place(g.collective_bytes * g.num_ranks);
  header->total_bytes = offset;
}

// What is wrong with the segment behind `fd`, if anything. `expected` may be null: any geometry
// will do.
absl::Status CheckFile(int fd, const std::string& path, const Geometry* expected) {
  alignas(SegmentHeader) std::byte bytes[sizeof(SegmentHeader)];
  const auto* header = reinterpret_cast<const SegmentHeader*>(bytes);
  const std::string remedy = fmt::format(
      "; stop the processes that use it, or, if there are none, remove it: rm {}", path);
  if (pread(fd, bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes)) ||
      header->magic != kMagic) {
    return FailedPrecondition("{} is not a Penstock segment{}", path, remedy);
  }
  if (header->layout_version != kLayoutVersion) {
    return FailedPrecondition(
        "segment {} has layout version {}, this program has {}: scheduler and workers must be of "
        "one release{}",
        path, header->layout_version, kLayoutVersion, remedy);
  }
  if (header->header_bytes != sizeof(SegmentHeader) || header->slot_bytes != sizeof(RequestSlot) ||
      header->rank_bytes != sizeof(RankArea)) {
    return FailedPrecondition(
        "segment {} was made by another build (struct sizes {}/{}/{}, here {}/{}/{}){}", path,
        header->header_bytes, header->slot_bytes, header->rank_bytes, sizeof(SegmentHeader),
        sizeof(RequestSlot), sizeof(RankArea), remedy);
  }
  struct stat info;
  if (fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) != header->total_bytes) {
    return FailedPrecondition("segment {} is not as long as it says{}", path, remedy);
  }
  if (expected != nullptr && header->geometry != *expected) {
    return FailedPrecondition(
        "segment {} was made with other settings ({} ranks, {} slots; asked for {} and {}){}", path,
        header->geometry.num_ranks, header->geometry.num_slots, expected->num_ranks,
        expected->num_slots, remedy);
  }
  return absl::OkStatus();
}

// Makes the segment's file under a temporary name, with its memory reserved, and returns the
// descriptor.
absl::StatusOr<int> MakeFile(const std::string& temporary, std::string_view engine_id,
                             const Geometry& geometry) {
  unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus("cannot create", temporary);
  alignas(SegmentHeader) std::byte bytes[sizeof(SegmentHeader)] = {};
  auto* header = new (bytes) SegmentHeader();
  std::memset(bytes, 0, sizeof(bytes));
  LayOut(geometry, header);
  engine_id.copy(header->engine_id, kMaxEngineIdBytes - 1);
  // Reserve the memory now: a tmpfs that is too small would else end the process with SIGBUS later.
  const int error = posix_fallocate(fd, 0, static_cast<off_t>(header->total_bytes));
  if (error != 0) {
    struct statvfs fs = {};
    statvfs(std::string(kDirectory).c_str(), &fs);
    close(fd);
    unlink(temporary.c_str());
    return ResourceExhausted(
        "the engine needs {} MiB in {} but {} MiB are free: enlarge it (docker: --shm-size, "
        "Kubernetes: a Memory emptyDir at /dev/shm) or lower --max-num-seqs",
        header->total_bytes >> 20, kDirectory, (fs.f_bavail * fs.f_frsize) >> 20);
  }
  if (pwrite(fd, bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes))) {
    absl::Status status = ErrnoStatus("cannot write", temporary);
    close(fd);
    unlink(temporary.c_str());
    return status;
  }
  return fd;
}

}  // namespace

std::string Segment::Path(std::string_view engine_id) {
  return fmt::format("{}/penstock-{}", kDirectory, engine_id);
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::CreateOrAdopt(std::string_view engine_id,
                                                                const Geometry& geometry) {
  RETURN_IF_ERROR(CheckEngineId(engine_id));
  RETURN_IF_ERROR(CheckGeometry(geometry));
  std::unique_ptr<Segment> segment(new Segment());
  segment->path_ = Path(engine_id);
  segment->fd_ = open(segment->path_.c_str(), O_RDWR | O_CLOEXEC);
  if (segment->fd_ >= 0) {
    if (!TryLock(segment->fd_, kSchedulerByte)) {
      return FailedPrecondition(
          "another scheduler serves engine {}: stop it or choose another --engine-id", engine_id);
    }
    const absl::Status usable = CheckFile(segment->fd_, segment->path_, &geometry);
    if (usable.ok()) {
      segment->adopted_ = true;
      RETURN_IF_ERROR(segment->Map(engine_id));
      return segment;
    }
    if (AnyRankLocked(segment->fd_)) return usable;
    spdlog::warn("msg=\"replacing a segment that nobody uses\" reason=\"{}\"", Message(usable));
    close(segment->fd_);
    segment->fd_ = -1;
  }
  // Whoever sees the final name sees a whole segment, and its scheduler's presence.
  const std::string temporary = fmt::format("{}.new", segment->path_);
  ASSIGN_OR_RETURN(segment->fd_, MakeFile(temporary, engine_id, geometry));
  CHECK(TryLock(segment->fd_, kSchedulerByte));
  if (rename(temporary.c_str(), segment->path_.c_str()) != 0)
    return ErrnoStatus("cannot name", segment->path_);
  RETURN_IF_ERROR(segment->Map(engine_id));
  return segment;
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Attach(std::string_view engine_id, int rank,
                                                         int64_t deadline_ns) {
  RETURN_IF_ERROR(CheckEngineId(engine_id));
  std::unique_ptr<Segment> segment(new Segment());
  segment->path_ = Path(engine_id);
  // Watch before looking, so that a segment made in between is not missed.
  FdCloser watch{inotify_init1(IN_CLOEXEC | IN_NONBLOCK)};
  if (watch.fd < 0 ||
      inotify_add_watch(watch.fd, std::string(kDirectory).c_str(), IN_MOVED_TO) < 0) {
    return ErrnoStatus("cannot watch", std::string(kDirectory));
  }
  while ((segment->fd_ = open(segment->path_.c_str(), O_RDWR | O_CLOEXEC)) < 0) {
    if (errno != ENOENT) return ErrnoStatus("cannot open", segment->path_);
    const int64_t left_ms = (deadline_ns - MonotonicNs()) / 1'000'000;
    if (left_ms <= 0) {
      return DeadlineExceeded(
          "no scheduler made engine {}'s segment {}: is it running with this --engine-id?",
          engine_id, segment->path_);
    }
    pollfd ready{watch.fd, POLLIN, 0};
    poll(&ready, 1, static_cast<int>(std::min<int64_t>(left_ms + 1, 1 << 30)));
    alignas(inotify_event) char events[4096];
    while (read(watch.fd, events, sizeof(events)) > 0) {
    }
  }
  RETURN_IF_ERROR(CheckFile(segment->fd_, segment->path_, nullptr));
  RETURN_IF_ERROR(segment->Map(engine_id));
  if (rank < 0 || rank >= static_cast<int>(segment->geometry().num_ranks)) {
    return OutOfRange(
        "rank {} of an engine with {} ranks: --tensor-parallel-size must agree with the "
        "scheduler's",
        rank, segment->geometry().num_ranks);
  }
  if (!TryLock(segment->fd_, rank)) {
    return FailedPrecondition("rank {} of engine {} already runs (pid {})", rank, engine_id,
                              segment->rank(rank).pid.load());
  }
  return segment;
}

absl::Status Segment::Map(std::string_view engine_id) {
  namespace ipc = boost::interprocess;
  RETURN_IF_ERROR(CheckFile(fd_, path_, nullptr));
  struct stat ours, named;
  try {
    const ipc::file_mapping mapping(path_.c_str(), ipc::read_write);
    region_ = ipc::mapped_region(mapping, ipc::read_write);
  } catch (const ipc::interprocess_exception& error) {
    return Internal("cannot map {}: {}", path_, error.what());
  }
  // The name must still lead to the file whose lock we hold.
  if (fstat(fd_, &ours) != 0 || stat(path_.c_str(), &named) != 0 || ours.st_ino != named.st_ino) {
    return Unavailable("segment of engine {} was replaced while attaching", engine_id);
  }
  return absl::OkStatus();
}

absl::Status Segment::Remove(std::string_view engine_id) {
  RETURN_IF_ERROR(CheckEngineId(engine_id));
  const std::string path = Path(engine_id);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus("cannot remove", path);
  return absl::OkStatus();
}

Segment::~Segment() {
  if (fd_ >= 0) close(fd_);
}

SegmentHeader& Segment::header() const {
  return *static_cast<SegmentHeader*>(region_.get_address());
}

RequestSlot& Segment::slot(uint32_t index) const {
  CHECK(index < geometry().num_slots);
  auto* base = static_cast<std::byte*>(region_.get_address()) + header().slots_offset;
  return reinterpret_cast<RequestSlot*>(base)[index];
}

RankArea& Segment::rank(int index) const {
  CHECK(index >= 0 && index < static_cast<int>(geometry().num_ranks));
  auto* base = static_cast<std::byte*>(region_.get_address()) + header().ranks_offset;
  return reinterpret_cast<RankArea*>(base)[index];
}

std::span<std::byte> Segment::plan_ring() const {
  return {static_cast<std::byte*>(region_.get_address()) + header().plan_ring_offset,
          geometry().plan_ring_bytes};
}

std::span<std::byte> Segment::result_ring(int rank) const {
  const uint64_t bytes = geometry().result_ring_bytes;
  return {
      static_cast<std::byte*>(region_.get_address()) + header().result_rings_offset + bytes * rank,
      bytes};
}

std::span<std::byte> Segment::arena() const {
  return {static_cast<std::byte*>(region_.get_address()) + header().arena_offset,
          geometry().arena_bytes};
}

std::span<std::byte> Segment::collective_buffer(int rank) const {
  const uint64_t bytes = geometry().collective_bytes;
  return {
      static_cast<std::byte*>(region_.get_address()) + header().collective_offset + bytes * rank,
      bytes};
}

bool Segment::RankIsAlive(int rank) const { return IsLocked(fd_, rank); }

void Segment::WaitForRankDeath(int rank) const {
  // Our own open file description, so that waiting threads do not stand in each other's way.
  FdCloser own{open(fmt::format("/proc/self/fd/{}", fd_).c_str(), O_RDWR | O_CLOEXEC)};
  CHECK(own.fd >= 0);
  struct flock lock = LockOf(F_RDLCK, rank);
  while (fcntl(own.fd, F_OFD_SETLKW, &lock) != 0) {
    CHECK(errno == EINTR);
  }
  // Closing the descriptor gives the lock back.
}

}  // namespace penstock::shm
