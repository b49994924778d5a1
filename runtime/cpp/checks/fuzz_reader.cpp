// What reads files of strangers, for libFuzzer: the first byte of an input says which it is, the rest is the file.
//   m  a manifest    o  an ONNX file    t  a tokenizer, and then a text behind a 0
// With TRTC_REPLAY a program that reads the files that it is given, by any compiler: the corpus in the tests.

#include "../src/detokenizer.h"
#include "../src/error.h"
#include "../src/in_place.h"
#include "../src/manifest.h"
#include "../src/onnx_file.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace
{

void readOne(char kind, char const* data, size_t bytes)
{
    using namespace trtc::runtime;
    switch (kind)
    {
    case 'm': readManifest(data, bytes, "the manifest", false); break;
    case 'o':
    {
        storedOutside(data, bytes);
        auto const nodes = nodesOf(data, bytes);
        writersOf(nodes, {{"kept", "cache"}}, {"held"}, {{"TrtcKVAppend", {{0, 0}}}});
        break;
    }
    case 't':
    {
        auto const* const end = static_cast<char const*>(std::memchr(data, '\0', bytes));
        size_t const size = end == nullptr ? bytes : static_cast<size_t>(end - data);
        Tokenizer const tokenizer(data, size, "the tokenizer", TRTC_ERROR_CONFIG);
        std::string_view const text = size < bytes ? std::string_view(data + size + 1, bytes - size - 1) : "a b";
        auto const tokens = tokenizer.encode(text, true);
        Detokenizer detokenizer(tokenizer, nullptr, 0);
        std::string pieces;
        for (int64_t const token : tokens)
        {
            pieces += detokenizer.add(token);
        }
        detokenizer.rest();
        break;
    }
    default: break;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t bytes)
{
    if (bytes == 0)
    {
        return -1;
    }
    try
    {
        readOne(static_cast<char>(data[0]), reinterpret_cast<char const*>(data) + 1, bytes - 1);
    }
    catch (trtc::runtime::Error const& error)
    {
        if (error.status() == TRTC_ERROR_INTERNAL || *error.what() == '\0')
        {
            std::abort();
        }
    }
    catch (std::invalid_argument const&)
    {
    }
    return 0;
}

#ifdef TRTC_REPLAY

#include <cstdio>
#include <fstream>
#include <iterator>

int main(int count, char** arguments)
{
    for (int at = 1; at < count; ++at)
    {
        std::ifstream file(arguments[at], std::ios::binary);
        std::string const content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(content.data()), content.size());
    }
    std::printf("read %d\n", count - 1);
    return 0;
}

#endif
