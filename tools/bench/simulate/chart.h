// Line charts as SVG: a grid of panels, a line a series, one legend.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace penstock::simulate {

struct Panel {
  std::string title;
  std::string x_label;
  bool logarithmic = false;                                   // y
  std::vector<std::vector<std::pair<double, double>>> lines;  // of each series; may be empty
};

// `rows` of panels, all with lines for `series` in this order.
std::string DrawCharts(const std::string& title, const std::vector<std::string>& series,
                       const std::vector<std::vector<Panel>>& rows);

}  // namespace penstock::simulate
