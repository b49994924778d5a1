// Sound as an input takes it, chunk by chunk: `(sample * scale - mean) / std` of samples from -1 to 1.

#include "api_call.h"
#include "prepared.h"

using namespace trtc::runtime;

namespace
{

struct Sound
{
    Port const* port = nullptr;
    int64_t rate = 0, channels = 1, chunk = 0, hop = 0;
    float factor = 1, offset = 0;
};

Sound soundOf(trtc_session const* session)
{
    needs(session, "session");
    Loaded const& loaded = *session->loaded;
    Json const& settings = loaded.bundle.manifest().preprocess;
    Json const* const kind = settings.find("kind");
    if (kind == nullptr || kind->text != "audio" || loaded.inputs.empty())
    {
        throw unsupportedError("The bundle takes no sound; give its inputs by trtc_run.");
    }
    Sound made;
    made.port = &preparedInput(loaded);
    auto const count = [&](char const* name, double usual)
    { return static_cast<int64_t>(numberAt(settings, name, 0, usual)); };
    auto const& axes = made.port->axes;
    bool const isFixed = !axes.empty() && axes.back().symbol == kNONE;
    made.rate = count("sample_rate", 0);
    made.channels = count("channels", 1);
    made.chunk = count("chunk_samples", isFixed ? static_cast<double>(axes.back().length) : 0);
    made.hop = count("hop_samples", static_cast<double>(made.chunk - count("overlap_samples", 0)));
    bool const fits = axes.size() == (made.channels > 1 ? 3 : 2) || (axes.size() == 3 && made.channels == 1);
    if (made.port->dtype != TRTC_FLOAT32 || !fits)
    {
        throw unsupportedError(
            "The input '" + shown(made.port->whole) + "' takes no sound of float32; give it by trtc_run.");
    }
    if (made.rate < 1 || made.channels < 1 || made.channels > 1024 || made.chunk < 1 || made.hop < 1
        || made.hop > made.chunk || (isFixed && axes.back().length != made.chunk))
    {
        throw bundleError("'preprocess' does not fit the input '" + shown(made.port->whole)
            + "'; export the bundle "
              "again.");
    }
    double const deviation = numberAt(settings, "std", 0, 1.0);
    if (deviation == 0.0)
    {
        throw bundleError("'preprocess.std' is 0; export the bundle again.");
    }
    made.factor = static_cast<float>(numberAt(settings, "scale", 0, 1.0) / deviation);
    made.offset = static_cast<float>(-numberAt(settings, "mean", 0, 0.0) / deviation);
    return made;
}

} // namespace

extern "C" {

trtc_status trtc_session_sound(trtc_session const* session, trtc_sound_info* info)
{
    return guarded(
        [&]
        {
            needs(info, "info");
            Sound const sound = soundOf(session);
            info->input = session->loaded->publicName(*sound.port).c_str();
            info->sample_rate = sound.rate;
            info->channels = static_cast<int32_t>(sound.channels);
            info->chunk_samples = sound.chunk;
            info->hop_samples = sound.hop;
        });
}

trtc_status trtc_sound_convert(trtc_session const* session, int16_t const* samples, trtc_tensor* tensor)
{
    return guarded(
        [&]
        {
            needs(samples, "samples");
            needs(tensor, "tensor");
            needs(tensor->data, "tensor->data");
            Sound const sound = soundOf(session);
            auto const length = static_cast<size_t>(sound.chunk), channels = static_cast<size_t>(sound.channels);
            if (tensor->bytes / sizeof(float) / channels < length)
            {
                throw shapeError("A chunk takes " + std::to_string(length * channels * sizeof(float))
                    + " bytes, and the buffer has " + std::to_string(tensor->bytes) + "; give a larger one.");
            }
            auto* const into = static_cast<float*>(tensor->data);
            for (size_t at = 0; at < length; ++at)
            {
                for (size_t channel = 0; channel < channels; ++channel)
                {
                    float const value = static_cast<float>(samples[at * channels + channel]) / 32768.0F * sound.factor;
                    into[channel * length + at] = value + sound.offset;
                }
            }
            bool const hasAxis = sound.port->axes.size() == 3;
            tensor->name = session->loaded->publicName(*sound.port).c_str();
            tensor->dtype = TRTC_FLOAT32;
            tensor->rank = hasAxis ? 3 : 2;
            tensor->shape[0] = 1;
            tensor->shape[1] = hasAxis ? sound.channels : sound.chunk;
            tensor->shape[2] = sound.chunk;
        });
}

char const* trtc_session_label(trtc_session const* session, size_t index)
{
    if (session == nullptr)
    {
        return nullptr;
    }
    Json const& settings = session->loaded->bundle.manifest().postprocess;
    for (char const* const name : {"labels", "classes"}) // of a classification, and of boxes
    {
        Json const* const list = settings.find(name);
        if (list != nullptr && index < list->items.size() && list->items[index].is(Json::Kind::kSTRING))
        {
            return list->items[index].text.c_str();
        }
    }
    return nullptr;
}

} // extern "C"
