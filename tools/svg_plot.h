// Line plots as SVG text, for pages that stand alone: colours are CSS variables of the page.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace kvcfs::tools {

struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y; x rising
};

struct PlotAxis {
  std::string title;
  bool is_log = false;
  double min = 0, max = 0;                            // equal: from the data
  std::vector<std::pair<double, std::string>> ticks;  // empty: round numbers
};

struct Plot {
  std::string title;  // what is shown, in words
  std::string note;   // one sentence below the title; may be empty
  PlotAxis x, y;
  std::vector<PlotSeries> series;  // at most kPlotColours
};
inline constexpr size_t kPlotColours = 4;

// A <figure>. Points have their values as tooltips; long series are thinned.
std::string RenderPlot(const Plot& plot);

// <, >, & and quotes.
std::string EscapeHtml(const std::string& text);

}  // namespace kvcfs::tools
