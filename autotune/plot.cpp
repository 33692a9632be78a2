// Coordinates, ticks and shapes.
#include "autotune/plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace q4::autotune {

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
  return safe;
}

std::string short_number(double value) {
  if (value == 0) return "0";
  const int digits = std::clamp(3 - static_cast<int>(std::floor(std::log10(std::abs(value)))), 0, 6);
  std::string text = fmt::format("{:.{}f}", value, digits);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

Plot::Plot(std::string name, Size size, std::vector<double> x_ticks, Scale y_scale, double y_low, double y_high)
    : name_(std::move(name)),
      size_(size),
      x_ticks_(std::move(x_ticks)),
      y_scale_(y_scale),
      y_low_(y_low),
      y_high_(y_high) {}

double Plot::px(double x) const {
  const double first = std::log2(x_ticks_.front()), last = std::log2(x_ticks_.back());
  const double share = last > first ? (std::log2(x) - first) / (last - first) : 0.5;
  return kLeft + 14 + share * (size_.width - kLeft - kRight - 28);
}

double Plot::py(double y) const {
  y = std::clamp(y, y_low_, y_high_);
  const bool log = y_scale_ == Scale::kLog;
  const double share = log ? std::log(y / y_low_) / std::log(y_high_ / y_low_) : (y - y_low_) / (y_high_ - y_low_);
  return size_.height - kBottom - share * (size_.height - kTop - kBottom);
}

std::vector<double> Plot::y_ticks() const {
  std::vector<double> ticks;
  if (y_scale_ == Scale::kLinear) {
    const double rough = (y_high_ - y_low_) / 5, power = std::pow(10.0, std::floor(std::log10(rough)));
    const double step = power * (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1);
    for (double y = std::ceil(y_low_ / step) * step; y <= y_high_ * 1.0001; y += step)
      ticks.push_back(std::abs(y) < step / 1000 ? 0 : y);
    return ticks;
  }
  const bool wide = y_high_ / y_low_ > 300;
  for (double decade = std::pow(10.0, std::floor(std::log10(y_low_))); decade <= y_high_; decade *= 10)
    for (const double digit : {1.0, 2.0, 5.0})
      if (inside(decade * digit) && (digit == 1.0 || !wide)) ticks.push_back(decade * digit);
  return ticks;
}

void Plot::axes(const std::string& x_label, const std::string& y_label, const std::string& y_suffix) {
  const int right = size_.width - kRight, bottom = size_.height - kBottom;
  for (const double y : y_ticks())
    body_ += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}{}</text>\n",
        kLeft, right, py(y), py(y), kLeft - 8, py(y) + 4, short_number(y), y_suffix);
  double room_from = -1e9;
  for (const double x : x_ticks_) {
    body_ += fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>", px(x), bottom,
                         bottom + 4);
    const std::string label = short_number(x);
    const double half = 3.6 * static_cast<double>(label.size());
    if (px(x) - half < room_from) continue;
    room_from = px(x) + half + 6;
    body_ += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", px(x),
                         bottom + 18, label);
  }
  body_ +=
      fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", kLeft, right, bottom, bottom);
  body_ += fmt::format("<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       (kLeft + right) / 2, size_.height - 8, escaped(x_label));
  body_ +=
      fmt::format("<text class=\"label\" transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                  (kTop + bottom) / 2, escaped(y_label));
}

void Plot::band(double low, double high, const std::string& style) {
  body_ += fmt::format("<rect class=\"{}\" x=\"{}\" width=\"{}\" y=\"{:.1f}\" height=\"{:.1f}\"/>\n", style, kLeft,
                       size_.width - kLeft - kRight, py(high), py(low) - py(high));
}

void Plot::rule(double y, const std::string& style) {
  body_ += fmt::format("<line class=\"{}\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", style, kLeft,
                       size_.width - kRight, py(y), py(y));
}

std::string Plot::mark_at(const Point& p, const std::string& style, const std::string& mark) const {
  const double x = px(p.x), y = py(p.y);
  std::string shape;
  if (mark == "circle") shape = fmt::format("<circle class=\"mark\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>", x, y);
  if (mark == "dot") shape = fmt::format("<circle class=\"mark\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\"/>", x, y);
  if (mark == "square")
    shape = fmt::format("<rect class=\"mark\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"7\" height=\"7\"/>", x - 3.5, y - 3.5);
  if (mark == "diamond") shape = fmt::format("<path class=\"mark\" d=\"M{:.1f} {:.1f}l5 5l-5 5l-5 -5z\"/>", x, y - 5);
  std::string whisker;
  if (p.low < p.high && p.high > y_low_ && p.low < y_high_)
    whisker =
        fmt::format("<path class=\"whisker\" d=\"M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {1:.1f}h8M{3:.1f} {2:.1f}h8\"/>", x,
                    py(p.low), py(p.high), x - 4);
  if (shape.empty() && whisker.empty()) return "";
  return fmt::format(
      "<g class=\"{}\">{}{}<circle class=\"hit\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"9\"/><title>{}</title></g>\n", style,
      whisker, shape, x, y, escaped(p.title));
}

void Plot::line(const std::vector<Point>& points, const std::string& style, const std::string& mark) {
  std::string path;
  for (std::size_t i = 0; i < points.size(); ++i) {
    Point p = points[i];
    if (!inside(p.y) && i > 0 && inside(points[i - 1].y) && y_scale_ == Scale::kLog) {
      // Ends where it leaves the plot: straight on both logarithmic axes.
      const Point& before = points[i - 1];
      const double edge = p.y > y_high_ ? y_high_ : y_low_;
      const double share = std::log(edge / before.y) / std::log(p.y / before.y);
      p.x = before.x * std::pow(p.x / before.x, share), p.y = edge;
    } else if (!inside(p.y)) {
      continue;
    }
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px(p.x), py(p.y));
  }
  body_ += fmt::format("<path class=\"line {}\" d=\"{}\"/>\n", style, path);
  marks(points, style, mark);
}

void Plot::marks(const std::vector<Point>& points, const std::string& style, const std::string& mark) {
  for (const Point& p : points)
    if (inside(p.y)) body_ += mark_at(p, style, mark);
}

std::string Plot::svg(const std::string& description) const {
  return fmt::format("<svg class=\"plot\" id=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
                     name_, size_.width, size_.height, escaped(description), body_);
}

}  // namespace q4::autotune
