// Hear words as they are spoken: 16-bit samples on standard input, little-endian, at the rate that the bundle takes.
//   arecord -f S16_LE -r 16000 -c 1 -t raw | spot_keywords BUNDLE [LIBONNXRUNTIME]
// Prints when each chunk begins, in seconds, and what is heard in it; at last the latencies as JSON. What is behind the
// last whole chunk is filled up with silence.

#include "common.h"

#include <cmath>

namespace
{

void listen(trt_compress::Session const& session)
{
    trtc_sound_info sound;
    trt_compress::check(trtc_session_sound(session.get(), &sound));
    trt_compress::States const states(session);
    auto const channels = static_cast<size_t>(sound.channels);
    size_t const chunk = static_cast<size_t>(sound.chunk_samples) * channels;
    size_t const hop = static_cast<size_t>(sound.hop_samples) * channels;
    std::vector<int16_t> samples(chunk);
    std::vector<float> input(chunk);
    example::Output logits = example::outputNamed(session, "logits");
    std::vector<trtc_tensor> outputs = {logits.tensor()};
    example::Latencies latencies;
    size_t held = 0; // of the chunk before, which this one overlaps
    for (size_t number = 0;; ++number)
    {
        size_t const fresh =
            example::readInto(samples.data() + held, (chunk - held) * sizeof(int16_t)) / sizeof(int16_t);
        if (fresh == 0)
        {
            break;
        }
        std::fill(samples.begin() + static_cast<std::ptrdiff_t>(held + fresh), samples.end(), int16_t{0});
        latencies.time(
            [&]
            {
                trtc_tensor tensor = {};
                tensor.data = input.data();
                tensor.bytes = input.size() * sizeof(float);
                trt_compress::check(trtc_sound_convert(session.get(), samples.data(), &tensor));
                states.run({tensor}, outputs);
            });
        size_t const heard = example::best(logits);
        float const* const numbers = logits.numbers();
        double total = 0;
        for (size_t at = 0; at < logits.count(); ++at)
        {
            total += std::exp(static_cast<double>(numbers[at] - numbers[heard]));
        }
        double const begins = static_cast<double>(number * static_cast<size_t>(sound.hop_samples)) / sound.sample_rate;
        std::printf("%.2f s: %s (%.0f %%)\n", begins, example::labelOf(session, heard).c_str(), 100 / total);
        std::fflush(stdout);
        if (held + fresh < chunk)
        {
            break; // that was the end
        }
        std::copy(samples.begin() + static_cast<std::ptrdiff_t>(hop), samples.end(), samples.begin());
        held = chunk - hop;
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
    return example::withSession(arguments[1], count == 3 ? arguments[2] : nullptr, listen);
}
