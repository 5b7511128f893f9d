// Recordings: what was written is read again, what is missing or damaged is told, a replay of the
// policy is identical, and one word changed in a plan is found and named.
#include "scheduler/record/recording.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "common/log.h"
#include "scheduler/record/frame.h"
#include "scheduler/record/policy_replay.h"
#include "tests/unit/scheduler/recorded_trace.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

struct Outcome {
  uint64_t num_steps = 0, num_requests = 0, num_epochs = 0, num_events = 0;
  std::optional<std::string> difference;
  std::string missing;
};

absl::StatusOr<Outcome> Replay(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Recording> recording, Recording::Open(path));
  PolicyReplay replay(recording->header(), /*check_invariants=*/true);
  Outcome outcome;
  while (!outcome.difference) {
    ASSIGN_OR_RETURN(const record::Event* const event, recording->Next());
    if (event == nullptr) break;
    ++outcome.num_events;
    ASSIGN_OR_RETURN(outcome.difference, replay.Take(*event));
  }
  outcome.missing = recording->Missing();
  if (!outcome.missing.empty()) replay.ComposeOnce();
  outcome.num_steps = replay.num_steps();
  outcome.num_requests = replay.num_requests();
  outcome.num_epochs = replay.num_epochs();
  return outcome;
}

class RecordingTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Of a few pages, so that some are preempted.
  TraceOptions Options() {
    TraceOptions options;
    options.seed = std::random_device()();
    options.num_pages = 40;
    std::printf("seed %u\n", options.seed);
    return options;
  }
  // Writes the recording anew with each event changed by `change`, which returns true when it has
  // done its work, whereafter it is not called any more.
  std::string Changed(const std::function<bool(record::Event*)>& change) {
    const auto recording = Recording::Open(path_).value();
    record::Block block;
    *block.add_events()->mutable_header() = recording->header();
    bool done = false;
    while (const record::Event* event = recording->Next().value()) {
      *block.add_events() = *event;
      done = done || change(block.mutable_events(block.events_size() - 1));
    }
    EXPECT_TRUE(done);
    block.add_events()->set_end(true);
    std::string frame;
    MakeFrame(block, &frame);
    WriteFile(folder_ + "/changed", kRecordMagic + frame);
    return folder_ + "/changed";
  }

  const std::string folder_ = fmt::format("{}/recording-{}", ::testing::TempDir(), getpid());
  const std::string path_ = folder_ + "/recording";
};

TEST_F(RecordingTest, ThePolicyReplaysAsItWasRecorded) {
  for (bool sharing : {true, false}) {
    TraceOptions options = Options();
    options.sharing = sharing;
    const std::string path = fmt::format("{}-{}", path_, sharing);
    uint64_t num_published, num_arrived, num_deaths;
    {
      RecordedTrace trace(path, options);
      trace.Run(20'000);
      trace.Finish();
      EXPECT_GT(trace.num_preemptions(), 100u);
      EXPECT_GT(trace.num_failed, 0u);
      EXPECT_EQ(trace.num_copies > 0, sharing);
      num_published = trace.num_published;
      num_arrived = trace.num_arrived;
      num_deaths = trace.num_deaths;
    }
    const Outcome outcome = Replay(path).value();
    EXPECT_EQ(outcome.difference, std::nullopt);
    EXPECT_EQ(outcome.missing, "");
    EXPECT_EQ(outcome.num_steps, num_published);
    EXPECT_EQ(outcome.num_requests, num_arrived);
    EXPECT_EQ(outcome.num_epochs, num_deaths + 1);
  }
}

TEST_F(RecordingTest, RecordingChangesNothing) {
  const TraceOptions options = Options();
  RecordedTrace recorded(path_, options), plain("", options);
  for (RecordedTrace* trace : {&recorded, &plain}) {
    trace->Run(5000);
    trace->Finish();
  }
  EXPECT_EQ(recorded.num_published, plain.num_published);
  EXPECT_EQ(recorded.num_arrived, plain.num_arrived);
  EXPECT_EQ(recorded.num_preemptions(), plain.num_preemptions());
}

TEST_F(RecordingTest, OneWordOfAPlanThatIsAnotherIsFoundAndNamed) {
  const TraceOptions options = Options();
  RecordedTrace(path_, options).Run(30'000);
  struct Case {
    const char* says;
    Words* (record::Compose::*words)();
  };
  std::mt19937 random(options.seed);
  for (const Case& c : {Case{"release 1 differs", &record::Compose::mutable_releases},
                        Case{"bind 1 differs", &record::Compose::mutable_binds},
                        Case{"page 1 differs", &record::Compose::mutable_appends},
                        Case{"copy 1 differs", &record::Compose::mutable_copies},
                        Case{"row 1 differs", &record::Compose::mutable_rows}}) {
    uint64_t num_such = 0;  // plans with any of it
    const auto recording = Recording::Open(path_).value();
    while (const record::Event* event = recording->Next().value()) {
      record::Compose compose = event->compose();
      num_such += (compose.*c.words)()->empty() ? 0 : 1;
    }
    ASSERT_GT(num_such, 0u) << c.says;
    uint64_t step = 0, skip = random() % num_such;
    const std::string changed = Changed([&](record::Event* event) {
      if (!event->has_compose()) return false;
      Words& words = *(event->mutable_compose()->*c.words)();
      if (words.empty() || skip-- > 0) return false;
      words.Set(1, words.Get(1) ^ 1);
      step = event->compose().step();
      return true;
    });
    const Outcome outcome = Replay(changed).value();
    ASSERT_TRUE(outcome.difference.has_value()) << c.says;
    EXPECT_THAT(*outcome.difference, HasSubstr(c.says));
    EXPECT_THAT(*outcome.difference, HasSubstr(fmt::format("step {} of epoch", step)));
    EXPECT_THAT(*outcome.difference, HasSubstr("Recorded:"));
  }
}

TEST_F(RecordingTest, RemovalsThatAreMissingAreFound) {
  RecordedTrace(path_, Options()).Run(3000);
  // The first fifty requests that are removed stay. (A single one might be of those that wait, and
  // wait on.)
  int num_kept = 0;
  const std::string changed = Changed([&](record::Event* event) {
    if (!event->has_remove()) return false;
    event->set_learn_length(event->remove());
    return ++num_kept == 50;
  });
  EXPECT_TRUE(Replay(changed).value().difference.has_value());
}

TEST_F(RecordingTest, ACutOffRecordingReplaysUpToTheCut) {
  const TraceOptions options = Options();
  RecordedTrace(path_, options).Run(3000);
  const std::string whole = ReadFile(path_);
  const Outcome all = Replay(path_).value();
  EXPECT_EQ(all.missing, "");
  std::mt19937 random(options.seed);
  uint64_t last_steps = 0;
  for (int part = 1; part <= 8; ++part) {
    const size_t bytes = whole.size() / 9 * part + random() % 50;
    WriteFile(path_, whole.substr(0, bytes));
    const Outcome cut = Replay(path_).value();
    EXPECT_EQ(cut.difference, std::nullopt);
    EXPECT_THAT(cut.missing, ::testing::AnyOf(HasSubstr("cut off"), HasSubstr("has no end")));
    EXPECT_GT(cut.num_steps, last_steps);
    EXPECT_LT(cut.num_steps, all.num_steps);
    last_steps = cut.num_steps;
  }
  // Behind a whole frame: only the end is missing.
  size_t at = sizeof(kRecordMagic) - 1;
  FrameHead head;
  for (int frame = 0; frame < 100; ++frame, at += sizeof(head) + head.bytes) {
    std::memcpy(&head, whole.data() + at, sizeof(head));
  }
  WriteFile(path_, whole.substr(0, at));
  const Outcome outcome = Replay(path_).value();
  EXPECT_EQ(outcome.difference, std::nullopt);
  EXPECT_THAT(outcome.missing, HasSubstr("has no end"));
  EXPECT_GT(outcome.num_steps, 0u);
}

TEST_F(RecordingTest, AnyByteThatIsAnotherIsNoticed) {
  const TraceOptions options = Options();
  RecordedTrace(path_, options).Run(500);
  const std::string whole = ReadFile(path_);
  const Outcome all = Replay(path_).value();
  std::mt19937 random(options.seed);
  for (int i = 0; i < 300; ++i) {
    std::string damaged = whole;
    const size_t at = random() % whole.size();
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    WriteFile(path_, damaged);
    const absl::StatusOr<Outcome> outcome = Replay(path_);
    if (!outcome.ok()) {
      EXPECT_THAT(Message(outcome.status()),
                  ::testing::AnyOf(HasSubstr("is damaged from byte"), HasSubstr("has no header"),
                                   HasSubstr("is not a recording")));
      continue;
    }
    // A length that is more than there is left.
    EXPECT_THAT(outcome->missing, HasSubstr("cut off")) << "byte " << at;
    EXPECT_LT(outcome->num_events, all.num_events);
  }
}

TEST_F(RecordingTest, BadFiles) {
  auto error = [&](const std::string& path) { return Message(Recording::Open(path).status()); };
  EXPECT_THAT(error(folder_ + "/none"), HasSubstr("no such file"));
  EXPECT_THAT(error(folder_), HasSubstr("not a file"));
  for (const std::string& text : {std::string(), std::string("PENST"), std::string(1000, 'x')}) {
    WriteFile(path_, text);
    EXPECT_THAT(error(path_), HasSubstr("is not a recording"));
  }
  WriteFile(path_, kRecordMagic);
  EXPECT_THAT(error(path_), HasSubstr("has no header"));
  record::Block block;
  block.add_events()->mutable_header()->set_version(kRecordVersion + 1);
  block.mutable_events(0)->mutable_header()->set_penstock_version("9.9");
  std::string frame;
  MakeFrame(block, &frame);
  WriteFile(path_, kRecordMagic + frame);
  EXPECT_THAT(error(path_),
              HasSubstr("is of version 2 (penstock 9.9), this program reads version"));
}

TEST_F(RecordingTest, EventsThatCannotBeAreRefused) {
  RecordedTrace(path_, Options()).Run(200);
  auto error = [&](const std::function<bool(record::Event*)>& change) {
    return Message(Replay(Changed(change)).status());
  };
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_enqueue()) return false;
                e->mutable_enqueue()->set_serial(5);
                return true;
              }),
              HasSubstr("request 5 follows request 0"));
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_remove()) return false;
                e->set_remove(1'000'000);
                return true;
              }),
              HasSubstr("removes request 1000000, which is not there"));
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_enqueue()) return false;
                e->mutable_enqueue()->mutable_submit()->set_prompt_len(-1);
                return true;
              }),
              HasSubstr("cannot have been taken: prompt_len -1"));
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_compose()) return false;
                e->mutable_compose()->set_step(9);
                return true;
              }),
              HasSubstr("step 9 after step 0"));
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_complete_step()) return false;
                e->set_complete_step(2'000);
                return true;
              }),
              HasSubstr("step 2000 is complete after step 0"));
  EXPECT_THAT(error([](record::Event* e) {
                if (!e->has_results() || e->results().rows_size() == 0) return false;
                e->mutable_results()->set_rows(0, 99);
                return true;
              }),
              HasSubstr("an id of slot 99"));
}

TEST_F(RecordingTest, TheFileIsItsOwnersAndNoneIsOverwritten) {
  for (int i = 0; i < 3; ++i) RecordedTrace(path_, Options()).Run(10);
  for (const char* suffix : {"", ".1", ".2"}) {
    struct stat facts;
    ASSERT_EQ(stat((path_ + suffix).c_str(), &facts), 0) << suffix;
    EXPECT_EQ(facts.st_mode & 0777, 0600u);
    EXPECT_EQ(Replay(path_ + suffix).value().missing, "");
  }
  EXPECT_THAT(Message(Recorder::Create(folder_ + "/none/file", {}).status()),
              HasSubstr("name one in a folder that can be written to"));
}

// A limit on the size of files fails like a full disk, but for its signal, which must not end the
// process.
TEST_F(RecordingTest, AFullDiskStopsTheRecordingAlone) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = 100'000;
  const TraceOptions options = Options();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  {
    RecordedTrace trace(path_, options), plain("", options);
    trace.Run(20'000);
    trace.Finish();
    plain.Run(20'000);
    plain.Finish();
    EXPECT_EQ(trace.num_published, plain.num_published);
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(std::filesystem::file_size(path_), 100'000u);
  const Outcome outcome = Replay(path_).value();
  EXPECT_EQ(outcome.difference, std::nullopt);
  // (By chance the limit is where a block ends.)
  EXPECT_THAT(outcome.missing, ::testing::AnyOf(HasSubstr("cut off"), HasSubstr("has no end")));
  EXPECT_GT(outcome.num_steps, 100u);
}

}  // namespace
}  // namespace penstock::scheduler
