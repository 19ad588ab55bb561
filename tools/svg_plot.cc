#include "tools/svg_plot.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace kvcfs::tools {
namespace {

constexpr double kWidth = 720, kHeight = 300;
constexpr double kLeft = 64, kRight = 28, kTop = 12, kBottom = 44;
constexpr size_t kPointsMax = 400;  // more than pixels help nobody
constexpr size_t kDotsMax = 60;     // with tooltips

// Maps values to the plot's area.
class Scale {
 public:
  Scale(const PlotAxis& axis, double min, double max, double from, double to)
      : is_log_(axis.is_log), from_(from), to_(to) {
    if (axis.max > axis.min) {
      min = axis.min;
      max = axis.max;
    }
    if (is_log_) {
      min = std::pow(10, std::floor(std::log10(std::max(min, 1e-3))));
      max = std::max(min * 10, std::pow(10, std::ceil(std::log10(std::max(max, 1e-3)))));
    } else if (!(max > min)) {
      max = min + 1;
    }
    min_ = min;
    max_ = max;
  }

  double operator()(double value) const {
    const double share = is_log_ ? std::log(std::max(value, min_) / min_) / std::log(max_ / min_)
                                 : (value - min_) / (max_ - min_);
    return from_ + std::clamp(share, 0.0, 1.0) * (to_ - from_);
  }

  std::vector<std::pair<double, std::string>> Ticks() const {
    std::vector<std::pair<double, std::string>> ticks;
    if (is_log_) {
      double at = min_;
      while (at <= max_ * 1.001) {
        ticks.emplace_back(at, Label(at));
        at *= 10;
      }
      return ticks;
    }
    const double rough = (max_ - min_) / 5;
    const double decade = std::pow(10, std::floor(std::log10(rough)));
    const double digit = rough / decade;
    const double step = decade * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
    const double first = std::ceil(min_ / step) * step;
    const int count = static_cast<int>((max_ + step * 1e-6 - first) / step);
    for (int i = 0; i <= count; ++i) {
      const double at = first + i * step;
      ticks.emplace_back(at, Label(std::abs(at) < step * 1e-6 ? 0 : at));
    }
    return ticks;
  }

 private:
  static std::string Label(double value) {
    if (std::abs(value) >= 1e6) return fmt::format("{:g}M", value / 1e6);
    if (std::abs(value) >= 1e4) return fmt::format("{:g}k", value / 1e3);
    return fmt::format("{:g}", std::round(value * 1e6) / 1e6);
  }

  bool is_log_;
  double from_, to_, min_ = 0, max_ = 1;
};

std::vector<std::pair<double, double>> Thinned(const std::vector<std::pair<double, double>>& all,
                                               size_t max) {
  if (all.size() <= max) return all;
  std::vector<std::pair<double, double>> some;
  for (size_t i = 0; i < max; ++i) some.push_back(all[i * (all.size() - 1) / (max - 1)]);
  return some;
}

std::string RenderAxes(const Plot& plot, const Scale& x, const Scale& y) {
  std::string svg;
  const double bottom = kHeight - kBottom;
  for (const auto& [value, label] : plot.y.ticks.empty() ? y.Ticks() : plot.y.ticks) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}</text>\n",
        kLeft, kWidth - kRight, y(value), kLeft - 8, y(value) + 4, EscapeHtml(label));
  }
  for (const auto& [value, label] : plot.x.ticks.empty() ? x.Ticks() : plot.x.ticks) {
    svg += fmt::format(
        "<line class=\"tick\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>"
        "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4}</text>\n",
        x(value), bottom, bottom + 4, bottom + 18, EscapeHtml(label));
  }
  svg += fmt::format(
      "<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>\n", kLeft,
      kWidth - kRight, bottom);
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6, EscapeHtml(plot.x.title));
  svg += fmt::format(
      "<text transform=\"translate(14 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
      (kTop + bottom) / 2, EscapeHtml(plot.y.title));
  return svg;
}

std::string RenderSeries(const PlotSeries& series, size_t colour, const Plot& plot, const Scale& x,
                         const Scale& y) {
  std::string points;
  for (const auto& [at, value] : Thinned(series.points, kPointsMax)) {
    points += fmt::format("{:.1f},{:.1f} ", x(at), y(value));
  }
  std::string svg = fmt::format("<polyline class=\"s{}\" points=\"{}\"/>\n", colour + 1, points);
  for (const auto& [at, value] : Thinned(series.points, kDotsMax)) {
    // Where an axis has names for its places, its numbers mean nothing to readers.
    const std::string where = plot.x.ticks.empty() ? fmt::format(" at {:.4g}", at) : std::string();
    svg += fmt::format(
        "<circle class=\"d{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\"><title>{}: {:.4g} "
        "{}{}</title></circle>",
        colour + 1, x(at), y(value), EscapeHtml(series.name), value, EscapeHtml(plot.y.title),
        where);
  }
  return svg + "\n";
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '&':
        escaped += "&amp;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string RenderPlot(const Plot& plot) {
  double x_min = HUGE_VAL, x_max = -HUGE_VAL, y_min = HUGE_VAL, y_max = -HUGE_VAL;
  for (const PlotSeries& series : plot.series) {
    for (const auto& [x, y] : series.points) {
      x_min = std::min(x_min, x);
      x_max = std::max(x_max, x);
      // A logarithmic axis has no place for 0.
      if (!plot.y.is_log || y > 0) y_min = std::min(y_min, y);
      y_max = std::max(y_max, y);
    }
  }
  std::string html = fmt::format("<figure>\n<figcaption><b>{}</b>", EscapeHtml(plot.title));
  if (!plot.note.empty()) html += fmt::format("<br><span>{}</span>", EscapeHtml(plot.note));
  html += "</figcaption>\n";
  if (!(x_max >= x_min) || !(y_max >= y_min)) {
    return html + "<p class=\"empty\">nothing was measured</p>\n</figure>\n";
  }
  const Scale x(plot.x, x_min, x_max, kLeft, kWidth - kRight);
  const Scale y(plot.y, plot.y.is_log ? y_min : std::min(0.0, y_min), y_max, kHeight - kBottom,
                kTop);
  html += "<p class=\"legend\">";
  for (size_t i = 0; i < plot.series.size(); ++i) {
    html += fmt::format("<span><i class=\"k{}\"></i>{}</span> ", i % kPlotColours + 1,
                        EscapeHtml(plot.series[i].name));
  }
  html += fmt::format("</p>\n<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\">\n",
                      kWidth, kHeight, EscapeHtml(plot.title));
  html += RenderAxes(plot, x, y);
  for (size_t i = 0; i < plot.series.size(); ++i) {
    html += RenderSeries(plot.series[i], i % kPlotColours, plot, x, y);
  }
  return html + "</svg>\n</figure>\n";
}

}  // namespace kvcfs::tools
