#include "tools/bench/simulate/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

namespace penstock::simulate {
namespace {

constexpr double kWidth = 300, kHeight = 190;  // of a panel, with its margins
constexpr double kLeft = 52, kRight = 12, kTop = 28, kBottom = 34;
constexpr double kHead = 56;  // title and legend
// Told apart by the colour-blind, too (Okabe and Ito's).
constexpr std::array<const char*, 6> kColours = {"#999999", "#e69f00", "#56b4e9",
                                                 "#d55e00", "#009e73", "#cc79a7"};

struct Range {
  double low = 0, high = 1;
};

std::string Escape(const std::string& text) {
  std::string escaped;
  for (char c : text) {
    if (c == '<') {
      escaped += "&lt;";
    } else if (c == '&') {
      escaped += "&amp;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

// 1, 2 or 5 times a power of ten, so that about four steps make up `span`.
double TickStep(double span) {
  const double power = std::pow(10, std::floor(std::log10(span / 4)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (span / (factor * power) <= 5) return factor * power;
  }
  return 10 * power;
}

class PanelWriter {
 public:
  PanelWriter(const Panel& panel, double left, double top, std::string* out)
      : panel_(panel), left_(left + kLeft), top_(top + kTop), out_(*out) {
    FindRanges();
  }

  void Write() {
    Text(left_, top_ - 10, "start", panel_.title, "font-weight=\"bold\"");
    Text(left_ + kInner, top_ + kDeep + 28, "end", panel_.x_label, "");
    Ticks();
    for (size_t i = 0; i < panel_.lines.size(); ++i) Line(i);
  }

 private:
  static constexpr double kInner = kWidth - kLeft - kRight, kDeep = kHeight - kTop - kBottom;

  double Scaled(double y) const { return panel_.logarithmic ? std::log10(y) : y; }
  bool Shown(double y) const { return !panel_.logarithmic || y > 0; }
  double X(double x) const { return left_ + kInner * (x - x_.low) / (x_.high - x_.low); }
  double Y(double y) const {
    return top_ + kDeep * (1 - (Scaled(y) - y_.low) / (y_.high - y_.low));
  }

  void FindRanges() {
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (const auto& line : panel_.lines) {
      for (const auto& [x, y] : line) {
        x_low = std::min(x_low, x);
        x_high = std::max(x_high, x);
        if (!Shown(y)) continue;
        y_low = std::min(y_low, Scaled(y));
        y_high = std::max(y_high, Scaled(y));
      }
    }
    if (x_low < x_high) x_ = {x_low, x_high};
    if (y_low > y_high) return;
    y_ = panel_.logarithmic ? Range{std::floor(y_low), std::ceil(y_high)} : Range{0, y_high * 1.05};
    if (y_.high <= y_.low) y_.high = y_.low + 1;
  }

  void Ticks() {
    const double step = panel_.logarithmic ? 1 : TickStep(y_.high - y_.low);
    for (int i = 0; y_.low + i * step <= y_.high + 1e-9; ++i) {
      const double tick = y_.low + i * step;
      const double value = panel_.logarithmic ? std::pow(10, tick) : tick;
      const double y = Y(value);
      fmt::format_to(std::back_inserter(out_),
                     "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" "
                     "stroke=\"#ddd\"/>\n",
                     left_, y, left_ + kInner, y);
      Text(left_ - 5, y + 4, "end", fmt::format("{:.4g}", value), "");
    }
    const double x_step = TickStep(x_.high - x_.low);
    const double x_first = std::ceil(x_.low / x_step - 1e-9) * x_step;
    for (int i = 0; x_first + i * x_step <= x_.high + 1e-9; ++i) {
      const double x = x_first + i * x_step;
      Text(X(x), top_ + kDeep + 15, "middle", fmt::format("{:.3g}", x), "");
    }
  }

  void Line(size_t index) {
    const char* colour = kColours[index % kColours.size()];
    std::string points;
    for (const auto& [x, y] : panel_.lines[index]) {
      if (!Shown(y)) continue;
      fmt::format_to(std::back_inserter(points), "{:.1f},{:.1f} ", X(x), Y(y));
      fmt::format_to(std::back_inserter(out_),
                     "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>\n", X(x), Y(y),
                     colour);
    }
    fmt::format_to(std::back_inserter(out_),
                   "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"/>\n",
                   points, colour);
  }

  void Text(double x, double y, const char* anchor, const std::string& text, const char* more) {
    fmt::format_to(std::back_inserter(out_),
                   "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y,
                   anchor, more, Escape(text));
  }

  const Panel& panel_;
  double left_, top_;
  std::string& out_;
  Range x_, y_;
};

}  // namespace

std::string DrawCharts(const std::string& title, const std::vector<std::string>& series,
                       const std::vector<std::vector<Panel>>& rows) {
  size_t columns = 1;
  for (const auto& row : rows) columns = std::max(columns, row.size());
  const double width = kWidth * static_cast<double>(columns);
  const double height = kHead + kHeight * static_cast<double>(rows.size());
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"#fff\"/>\n<text x=\"12\" y=\"22\" font-size=\"15\">{2}</text>\n",
      width, height, Escape(title));
  double x = 12;
  for (size_t i = 0; i < series.size(); ++i) {
    fmt::format_to(std::back_inserter(out),
                   "<rect x=\"{}\" y=\"35\" width=\"14\" height=\"4\" fill=\"{}\"/>"
                   "<text x=\"{}\" y=\"41\">{}</text>\n",
                   x, kColours[i % kColours.size()], x + 19, Escape(series[i]));
    x += 34 + 6 * static_cast<double>(series[i].size());
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    for (size_t column = 0; column < rows[row].size(); ++column) {
      PanelWriter(rows[row][column], kWidth * static_cast<double>(column),
                  kHead + kHeight * static_cast<double>(row), &out)
          .Write();
    }
  }
  return out + "</svg>\n";
}

}  // namespace penstock::simulate
