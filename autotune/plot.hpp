// A plot over m as inline SVG: logarithmic axes, lines with marks, whiskers. Colours come from the page's style sheet.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace q4::autotune {

std::string escaped(const std::string& text);  ///< for HTML text and attributes
/// Four significant digits at most and no trailing zeros: "1.25", "820", "0.0125".
std::string short_number(double value);

class Plot {
 public:
  struct Point {
    double x = 0, y = 0;
    double low = 0, high = 0;  ///< a whisker where low < high
    std::string title;         ///< shown when the mouse rests on it
  };
  struct Size {
    int width = 0, height = 0;
  };
  enum class Scale { kLog, kLinear };

  /// `name`: unique on the page. Ticks of x are `x_ticks`, labelled where there is room; x is logarithmic.
  Plot(std::string name, Size size, std::vector<double> x_ticks, Scale y_scale, double y_low, double y_high);

  void axes(const std::string& x_label, const std::string& y_label, const std::string& y_suffix);
  /// A horizontal band, clipped to the plot.
  void band(double y_low, double y_high, const std::string& style);
  void rule(double y, const std::string& style);
  /// `style` is a class of the style sheet: s-tuned, s-default, s-dense, s-floor. `mark`: circle, square, diamond or
  /// none.
  void line(const std::vector<Point>& points, const std::string& style, const std::string& mark);
  void marks(const std::vector<Point>& points, const std::string& style, const std::string& mark);
  /// The complete <svg>. `description` is read to those who cannot see it.
  std::string svg(const std::string& description) const;

 private:
  double px(double x) const;
  double py(double y) const;  ///< clamped to the plot
  bool inside(double y) const { return y >= y_low_ && y <= y_high_; }
  std::vector<double> y_ticks() const;
  std::string mark_at(const Point& p, const std::string& style, const std::string& mark) const;

  static constexpr int kLeft = 62, kRight = 16, kTop = 14, kBottom = 46;
  std::string name_;
  Size size_;
  std::vector<double> x_ticks_;
  Scale y_scale_;
  double y_low_, y_high_;
  std::string body_;
};

}  // namespace q4::autotune
