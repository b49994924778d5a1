// Reads what could be a manifest or an ONNX file, and says what comes of it: for the tests, compiled with sanitizers.
//   check_manifests [--no-digest] FILE…    one line for each file: `ok DIGEST`, or `refused SENTENCE`

#include "error.h"
#include "manifest.h"
#include "onnx_file.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

int main(int count, char** arguments)
{
    bool checkDigest = true;
    for (int at = 1; at < count; ++at)
    {
        if (std::strcmp(arguments[at], "--no-digest") == 0)
        {
            checkDigest = false;
            continue;
        }
        std::string const name = arguments[at];
        std::ifstream file(name, std::ios::binary);
        std::string const text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        try
        {
            if (name.size() > 5 && name.compare(name.size() - 5, 5, ".onnx") == 0)
            {
                auto const stored = trtc::runtime::storedOutside(text.data(), text.size());
                auto const nodes = trtc::runtime::nodesOf(text.data(), text.size());
                std::printf("ok %zu tensors outside, %zu nodes\n", stored.size(), nodes.size());
                continue;
            }
            auto const manifest = trtc::runtime::readManifest(text.data(), text.size(), "manifest.json", checkDigest);
            std::printf("ok %s\n", manifest.digest.c_str());
        }
        catch (trtc::runtime::Error const& error)
        {
            std::printf("refused %s\n", error.what());
        }
        catch (std::invalid_argument const& error)
        {
            std::printf("refused %s\n", error.what());
        }
    }
    return 0;
}
