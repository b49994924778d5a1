// Classify the frames of a video as they come: raw frames on standard input, of the size that the bundle takes, one
// byte a channel. What one frame leaves for the next, such as what was seen of it already, is kept.
//   ffmpeg -i VIDEO -vf scale=96:96 -f rawvideo -pix_fmt rgb24 - | stream_video BUNDLE [LIBONNXRUNTIME]
// Prints the class of each frame, and at last the latencies as JSON.

#include "common.h"

namespace
{

void stream(trt_compress::Session const& session)
{
    trtc_image_info image;
    trt_compress::check(trtc_session_image(session.get(), &image));
    if (image.height == 0 || image.width == 0)
    {
        throw std::runtime_error("The bundle takes pictures of any size, so that the frames have to say theirs; export "
                                 "it for one size.");
    }
    trt_compress::States const states(session);
    std::vector<uint8_t> frame(static_cast<size_t>(image.height * image.width * image.channels));
    std::vector<float> input(frame.size());
    example::Output logits = example::outputNamed(session, "logits");
    std::vector<trtc_tensor> outputs = {logits.tensor()};
    example::Latencies latencies;
    for (size_t number = 0;; ++number)
    {
        size_t const read = example::readInto(frame.data(), frame.size());
        if (read < frame.size())
        {
            if (read != 0)
            {
                throw std::runtime_error("Frame " + std::to_string(number) + " is cut off: it has "
                    + std::to_string(read) + " of " + std::to_string(frame.size()) + " bytes.");
            }
            break;
        }
        latencies.time(
            [&]
            {
                trtc_tensor tensor = {};
                tensor.data = input.data();
                tensor.bytes = input.size() * sizeof(float);
                trt_compress::check(trtc_image_convert(
                    session.get(), frame.data(), image.height, image.width, image.channels, &tensor));
                states.run({tensor}, outputs);
            });
        std::printf("frame %zu: %s\n", number, example::labelOf(session, example::best(logits)).c_str());
        std::fflush(stdout);
    }
    latencies.print();
}

} // namespace

int main(int count, char** arguments)
{
    if (count < 2 || count > 3)
    {
        std::fprintf(stderr, "give a bundle, and the path of libonnxruntime.so where the loader does not find it\n");
        return 2;
    }
    return example::withSession(arguments[1], count == 3 ? arguments[2] : nullptr, stream);
}
