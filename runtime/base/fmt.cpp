// fmt's functions, compiled once instead of in each file that formats: in the inline namespace that q4_fmt gives them
// (cmake/dependencies.cmake), so that they are not those of an embedder's own fmt.
#include <fmt/format.h>

#ifndef FMT_HEADER_ONLY
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
namespace detail {

template auto dragonbox::to_decimal(float x) noexcept -> dragonbox::decimal_fp<float>;
template auto dragonbox::to_decimal(double x) noexcept -> dragonbox::decimal_fp<double>;
template auto thousands_sep_impl<char>(locale_ref) -> thousands_sep_result<char>;
template auto decimal_point_impl<char>(locale_ref) -> char;
template void buffer<char>::append(const char*, const char*);

#if FMT_VERSION < 120000  // it has moved since
template auto locale_ref::get<std::locale>() const -> std::locale;
#endif

}  // namespace detail

#if FMT_VERSION >= 120000
template auto locale_ref::get<std::locale>() const -> std::locale;
#endif
FMT_END_NAMESPACE
#endif
