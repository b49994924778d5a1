// Pictures as an input takes them: `(pixel * scale - mean) / std`.

#include "api_call.h"
#include "prepared.h"

using namespace trtc::runtime;

namespace
{

struct Image
{
    Port const* port = nullptr;
    bool isLast = false; //!< the channels are the last axis
    int64_t channels = 0, height = 0, width = 0;
    float factor[3] = {}, offset[3] = {};
};

Image imageOf(trtc_session const* session)
{
    needs(session, "session");
    Loaded const& loaded = *session->loaded;
    Json const& settings = loaded.bundle.manifest().preprocess;
    Json const* const kind = settings.find("kind");
    if (kind == nullptr || kind->text != "image" || loaded.inputs.empty())
    {
        throw unsupportedError("The bundle takes no pictures; give its inputs by trtc_run.");
    }
    Json const* const layout = settings.find("layout");
    Image made;
    made.port = &preparedInput(loaded);
    made.isLast = layout != nullptr && layout->text == "NHWC";
    std::vector<Axis> const& axes = made.port->axes;
    if (axes.size() != 4 || made.port->dtype != TRTC_FLOAT32)
    {
        throw unsupportedError(
            "The input '" + shown(made.port->whole) + "' takes no pictures of float32; give it by trtc_run.");
    }
    auto const length = [&](size_t axis) { return axes[axis].symbol == kNONE ? axes[axis].length : 0; };
    made.channels = length(made.isLast ? 3 : 1);
    made.height = length(made.isLast ? 1 : 2);
    made.width = length(made.isLast ? 2 : 3);
    if (made.channels != 1 && made.channels != 3)
    {
        throw bundleError("The input '" + shown(made.port->whole) + "' has " + std::to_string(made.channels)
            + " channels, which are neither RGB nor grey; export the bundle again.");
    }
    for (size_t channel = 0; channel < static_cast<size_t>(made.channels); ++channel)
    {
        double const deviation = numberAt(settings, "std", channel, 1.0);
        if (deviation == 0.0)
        {
            throw bundleError("'preprocess.std' is 0; export the bundle again.");
        }
        made.factor[channel] = static_cast<float>(numberAt(settings, "scale", 0, 1.0) / deviation);
        made.offset[channel] = static_cast<float>(-numberAt(settings, "mean", channel, 0.0) / deviation);
    }
    return made;
}

} // namespace

extern "C" {

trtc_status trtc_session_image(trtc_session const* session, trtc_image_info* info)
{
    return guarded(
        [&]
        {
            needs(info, "info");
            Image const image = imageOf(session);
            info->input = session->loaded->publicName(*image.port).c_str();
            info->channels = static_cast<int32_t>(image.channels);
            info->height = image.height;
            info->width = image.width;
        });
}

trtc_status trtc_image_convert(trtc_session const* session, uint8_t const* pixels, int64_t height, int64_t width,
    int32_t channels, trtc_tensor* tensor)
{
    return guarded(
        [&]
        {
            needs(pixels, "pixels");
            needs(tensor, "tensor");
            needs(tensor->data, "tensor->data");
            Image const image = imageOf(session);
            bool const isOfSize = (image.height == 0 || height == image.height)
                && (image.width == 0 || width == image.width) && channels == image.channels;
            if (!isOfSize || height < 1 || width < 1 || height > 1 << 20 || width > 1 << 20)
            {
                throw shapeError("The picture has " + std::to_string(width) + "x" + std::to_string(height)
                    + " pixels of " + std::to_string(channels) + " channels, and the bundle takes "
                    + std::to_string(image.width) + "x" + std::to_string(image.height) + " of "
                    + std::to_string(image.channels) + "; resize it first.");
            }
            auto const area = static_cast<size_t>(height * width), count = static_cast<size_t>(channels);
            if (tensor->bytes / sizeof(float) / count < area)
            {
                throw shapeError("The picture takes " + std::to_string(area * count * sizeof(float))
                    + " bytes, and the buffer has " + std::to_string(tensor->bytes) + "; give a larger one.");
            }
            auto* const into = static_cast<float*>(tensor->data);
            for (size_t pixel = 0; pixel < area; ++pixel)
            {
                for (size_t channel = 0; channel < count; ++channel)
                {
                    float const value = static_cast<float>(pixels[pixel * count + channel]) * image.factor[channel];
                    into[image.isLast ? pixel * count + channel : channel * area + pixel] =
                        value + image.offset[channel];
                }
            }
            tensor->name = session->loaded->publicName(*image.port).c_str();
            tensor->dtype = TRTC_FLOAT32;
            tensor->rank = 4;
            int64_t const shape[2][4] = {{1, channels, height, width}, {1, height, width, channels}};
            std::copy(shape[image.isLast], shape[image.isLast] + 4, tensor->shape);
        });
}

} // extern "C"
