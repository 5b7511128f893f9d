// One step's plan as it goes to the ranks; the vectors are reused from step to step.
#pragma once

#include <vector>

#include "common/shm/layout.h"

namespace penstock::scheduler {

struct PlanRecord {
  std::vector<shm::PlanSlot> releases;
  std::vector<shm::PlanSlot> binds;
  std::vector<shm::PlanAppend> appends;
  std::vector<shm::PlanCopy> copies;
  std::vector<shm::PlanRow> rows;

  void Clear() {
    releases.clear();
    binds.clear();
    appends.clear();
    copies.clear();
    rows.clear();
  }
  bool empty() const { return releases.empty() && rows.empty(); }
};

}  // namespace penstock::scheduler
