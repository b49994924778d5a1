// Characters: UTF-8, what the tokenizers' regular expressions know of them, and canonical forms.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trtc::runtime
{

//! The characters of UTF-8; none: it is no UTF-8.
std::optional<std::u32string> charactersOf(std::string_view text);

//! The same, where each longest part that begins no character is U+FFFD, as Unicode recommends it.
std::u32string charactersOfAny(std::string_view text);

std::string utf8Of(std::u32string_view text);

void appendUtf8(char32_t character, std::string& out);

//! How many characters UTF-8 has.
size_t countCharacters(std::string_view text) noexcept;

//! Where in UTF-8 the character of a number begins; its end if it has fewer.
size_t offsetOf(std::string_view text, size_t number) noexcept;

//! Number of the general category.
uint32_t categoryOf(char32_t character) noexcept;

//! The categories of a name, "L" or "Lu", as bits; 0: it has none.
uint32_t categoriesNamed(std::string_view name) noexcept;

//! `\s` of a regular expression.
bool isSpace(char32_t character) noexcept;

//! What the pre-tokenizer `Digits` takes for one.
bool isNumber(char32_t character) noexcept;

//! Canonical decomposition (NFD), or composition of it (NFC).
std::u32string normalized(std::u32string const& text, bool compose);

} // namespace trtc::runtime
