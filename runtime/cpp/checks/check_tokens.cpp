// Reads tokenizers, and tells the tokens of texts; the tests run it under sanitizers.
//   check_tokens TOKENIZER.json TEXT…
// Each text is a file; one line for each: its tokens, and the text that they give, as JSON does not need it. Of a
// tokenizer that is refused the sentence.

#include "../src/detokenizer.h"
#include "../src/error.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

namespace
{

std::string contentOf(char const* path)
{
    std::ifstream file(path, std::ios::binary);
    return {(std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>()};
}

} // namespace

int main(int count, char** arguments)
{
    if (count < 2)
    {
        return 2;
    }
    try
    {
        std::string const json = contentOf(arguments[1]);
        trtc::runtime::Tokenizer const tokenizer(json.data(), json.size(), "The file", TRTC_ERROR_CONFIG);
        std::printf("size %lld\n", static_cast<long long>(tokenizer.size()));
        for (int at = 2; at < count; ++at)
        {
            std::string const text = contentOf(arguments[at]);
            try
            {
                auto const tokens = tokenizer.encode(text, true);
                trtc::runtime::Detokenizer detokenizer(tokenizer, nullptr, 0);
                std::string pieces;
                for (int64_t const token : tokens)
                {
                    std::printf("%lld ", static_cast<long long>(token));
                    pieces += detokenizer.add(token);
                }
                pieces += detokenizer.rest();
                bool const isSame = pieces == tokenizer.decode(tokens.data(), tokens.size());
                std::printf("%s\n", isSame ? "ok" : "the pieces are not the whole");
            }
            catch (trtc::runtime::Error const& error)
            {
                std::printf("refused %s\n", error.what());
            }
        }
    }
    catch (trtc::runtime::Error const& error)
    {
        std::printf("refused %s\n", error.what());
    }
    return 0;
}
