// Classify a picture: a PGM or PPM file (P5, P6) of the size that the bundle takes.
//   classify_image BUNDLE PICTURE.pgm [LIBONNXRUNTIME]
// Prints the five most probable classes with their probabilities.

#include "trt_compress/runtime.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

namespace
{

struct Picture
{
    int width = 0, height = 0, channels = 0;
    std::vector<uint8_t> pixels;
};

Picture readPicture(std::string const& path)
{
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int most = 0;
    Picture made;
    if (!(file >> kind >> made.width >> made.height >> most) || (kind != "P5" && kind != "P6") || most != 255
        || made.width < 1 || made.height < 1 || made.width > 16384 || made.height > 16384)
    {
        throw std::runtime_error("'" + path + "' is no PGM or PPM file of 8 bits; convert the picture to one.");
    }
    file.get();
    made.channels = kind == "P6" ? 3 : 1;
    made.pixels.resize(static_cast<size_t>(made.width) * made.height * made.channels);
    if (!file.read(reinterpret_cast<char*>(made.pixels.data()), static_cast<std::streamsize>(made.pixels.size())))
    {
        throw std::runtime_error("'" + path + "' is cut off; convert the picture again.");
    }
    return made;
}

int classify(char const* bundle, char const* path, char const* library)
{
    auto options = trt_compress::make<trtc_session_options>();
    options.onnxruntime = library;
    trt_compress::Session const session(bundle, options);
    trt_compress::States const states(session);

    Picture const picture = readPicture(path);
    std::vector<float> input(picture.pixels.size());
    trtc_tensor tensor = {};
    tensor.data = input.data();
    tensor.bytes = input.size() * sizeof(float);
    trt_compress::check(trtc_image_convert(
        session.get(), picture.pixels.data(), picture.height, picture.width, picture.channels, &tensor));

    trtc_tensor_info const info = session.outputs().front();
    std::vector<float> logits(info.shape[info.rank - 1] > 0 ? static_cast<size_t>(info.shape[info.rank - 1]) : 1);
    std::vector<trtc_tensor> outputs(1);
    outputs[0].name = info.name;
    outputs[0].data = logits.data();
    outputs[0].bytes = logits.size() * sizeof(float);
    states.run({tensor}, outputs);

    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t one, size_t two) { return logits[one] > logits[two]; });
    double total = 0.0;
    for (float const each : logits)
    {
        total += std::exp(static_cast<double>(each - logits[order[0]]));
    }
    for (size_t at = 0; at < std::min<size_t>(5, order.size()); ++at)
    {
        double const share = std::exp(static_cast<double>(logits[order[at]] - logits[order[0]])) / total;
        std::printf("class %zu: %.1f %%\n", order[at], 100.0 * share);
    }
    return 0;
}

} // namespace

int main(int count, char** arguments)
{
    if (count < 3 || count > 4)
    {
        std::fprintf(stderr,
            "give a bundle, a picture, and the path of libonnxruntime.so where the loader does not "
            "find it\n");
        return 2;
    }
    try
    {
        return classify(arguments[1], arguments[2], count == 4 ? arguments[3] : nullptr);
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}
