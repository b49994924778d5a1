// Write the answer to a prompt, as it comes.
//   generate_text BUNDLE PROMPT [LIBONNXRUNTIME] [MAX_NEW]
// The prompt is a text as the model wants it: a chat template is not rendered here. `-` reads it from standard input.

#include "trt_compress/runtime.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <iterator>
#include <string>

namespace
{

int generate(char const* bundle, std::string const& prompt, char const* library, long long most)
{
    auto options = trt_compress::make<trtc_session_options>();
    options.onnxruntime = library;
    trt_compress::Session const session(bundle, options);
    trt_compress::Tokenizer const tokenizer(session);
    auto how = trt_compress::make<trtc_generate_options>();
    how.max_new = most;
    trt_compress::Generation const generation(session, tokenizer, tokenizer.encode(prompt), how);
    trtc_piece piece;
    do
    {
        piece = generation.next();
        std::fwrite(piece.text, 1, piece.bytes, stdout);
        std::fflush(stdout);
    }
    while (piece.reason == TRTC_GOES_ON);
    std::printf("\n");
    return 0;
}

} // namespace

int main(int count, char** arguments)
{
    if (count < 3 || count > 5)
    {
        std::fprintf(stderr,
            "give a bundle, a prompt, the path of libonnxruntime.so where the loader does not find it (else \"\"), and "
            "the most new tokens\n");
        return 2;
    }
    std::string prompt = arguments[2];
    if (prompt == "-")
    {
        prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
    }
    try
    {
        char const* const library = count > 3 && *arguments[3] != '\0' ? arguments[3] : nullptr;
        return generate(arguments[1], prompt, library, count > 4 ? std::atoll(arguments[4]) : 0);
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}
