#include "tools/penstock/supervisor.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace penstock::launcher {
namespace {

// Runs a supervisor in a process of its own; its processes are shell scripts that write lines to a
// FIFO.
class SupervisorTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/supervisor-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    fifo_ = directory_ + "/lines";
    ASSERT_EQ(mkfifo(fifo_.c_str(), 0600), 0);
    // Open for both, so that the end of one writer is no end of file.
    lines_.open(fifo_, std::ios::in | std::ios::out);
  }

  void TearDown() override {
    if (pid_ > 0) kill(pid_, SIGKILL);
    std::filesystem::remove_all(directory_);
  }

  ProcessSpec Script(const std::string& name, const std::string& script) {
    return {name, {"/bin/sh", "-c", "say() { echo \"$*\" > " + fifo_ + "; }; " + script}};
  }

  void Run(std::vector<GroupSpec> groups) {
    pid_ = fork();
    if (pid_ == 0) {
      Supervisor supervisor(std::move(groups), 5, [](std::string_view) {});
      absl::StatusOr<int> code = supervisor.Run();
      _exit(code.ok() ? *code : 99);
    }
  }

  std::string NextLine() {
    std::string line;
    std::getline(lines_, line);
    return line;
  }

  int WaitForEnd() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string directory_, fifo_;
  std::fstream lines_;
  pid_t pid_ = -1;
};

TEST_F(SupervisorTest, EndsGroupsInOrder) {
  auto waiting = [&](const std::string& name) {
    return Script(name, "trap 'say end " + name +
                            "; kill $child; exit 0' TERM; sleep 60 & child=$!; say up; wait");
  };
  Run({{"first", {waiting("first")}}, {"second", {waiting("second")}}});
  EXPECT_EQ(NextLine(), "up");
  EXPECT_EQ(NextLine(), "up");
  kill(pid_, SIGTERM);
  EXPECT_EQ(NextLine(), "end first");
  EXPECT_EQ(NextLine(), "end second");
  EXPECT_EQ(WaitForEnd(), 0);
}

TEST_F(SupervisorTest, RestartsAWholeGroupWhenOneDies) {
  Run({{"group",
        {Script("a", "say a $$; exec sleep 60"), Script("b", "say b $$; exec sleep 60")}}});
  std::string first_a, first_b;
  for (int i = 0; i < 2; ++i) {
    const std::string line = NextLine();
    (line[0] == 'a' ? first_a : first_b) = line.substr(2);
  }
  kill(std::stoi(first_a), SIGKILL);
  std::string second_a, second_b;
  for (int i = 0; i < 2; ++i) {
    const std::string line = NextLine();
    (line[0] == 'a' ? second_a : second_b) = line.substr(2);
  }
  EXPECT_NE(first_a, second_a);
  EXPECT_NE(first_b, second_b);
  EXPECT_NE(kill(std::stoi(first_b), 0), 0) << "the old b still runs";
  kill(pid_, SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0);
}

TEST_F(SupervisorTest, StopsAllOnBadInput) {
  const std::string gate = directory_ + "/gate";  // bad ends once good is up, or good might not say
  ASSERT_EQ(mkfifo(gate.c_str(), 0600), 0);
  Run({{"good", {Script("good", "say $$; exec sleep 60")}},
       {"bad", {Script("bad", "read go < " + gate + "; exit 2")}}});
  const pid_t good = std::stoi(NextLine());
  std::ofstream(gate) << "go" << std::endl;
  EXPECT_EQ(WaitForEnd(), kExitBadInput);
  EXPECT_NE(kill(good, 0), 0);
}

TEST_F(SupervisorTest, SecondSignalKills) {
  Run({{"stubborn", {Script("stubborn", "trap '' TERM; say $$; while :; do sleep 1; done")}}});
  const pid_t stubborn = std::stoi(NextLine());
  kill(pid_, SIGTERM);
  kill(pid_, SIGINT);
  EXPECT_EQ(WaitForEnd(), 0);
  EXPECT_NE(kill(stubborn, 0), 0);
}

}  // namespace
}  // namespace penstock::launcher
