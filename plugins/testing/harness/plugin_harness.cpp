// Drives the plugins of a library through the life that TensorRT gives them, without TensorRT: only its headers are
// needed. Prints one JSON line for the library and one for each case; a case whose "problems" is empty broke no rule.
//
//   plugin_harness LIBRARY REQUEST [--enqueue FOLDER]
//
// --enqueue also runs the kernels on the inputs named by `data`, between guard bytes, twice, and in a captured CUDA
// graph; then, where data of other sizes are given, on those and on the first again, as shapes change between calls.
// Outputs are written to FOLDER. Built with TRTC_EMULATED_CUDA it does so on the CPU, without the graph.

#include "fields.h"
#include "json.h"
#include "request.h"
#include "run_phase.h"

#include <dlfcn.h>

#include <cstring>
#include <iostream>

namespace trtc::harness
{

namespace
{

using nvinfer1::IPluginCreatorV3One;
using nvinfer1::IPluginV3OneCore;
using nvinfer1::TensorRTPhase;

// One plugin on its way through the case.
class Life final : public RunPhase
{
public:
    Life(Case const& wanted, IPluginCreatorV3One& creator, Logger& logger, Json& json, Problems& problems)
        : RunPhase(wanted, logger, json, problems)
        , mCreator(creator)
    {
    }

    void refuse()
    {
        Fields fields = fieldsOf(mCase, mCreator.getFieldNames());
        mLogger.errors.clear();
        std::unique_ptr<IPluginV3> const plugin{
            mCreator.createPlugin(mCase.label.c_str(), fields.collection(), TensorRTPhase::kBUILD)};
        note(plugin == nullptr, "the creator took fields that it must refuse");
        note(!mLogger.errors.empty(), "nothing was logged for fields that were refused");
    }

    void run(std::string const& folder)
    {
        Fields fields = fieldsOf(mCase, mCreator.getFieldNames());
        mLogger.errors.clear();
        std::unique_ptr<IPluginV3> plugin{
            mCreator.createPlugin(mCase.label.c_str(), fields.collection(), TensorRTPhase::kBUILD)};
        if (!note(plugin != nullptr, "the creator gave no plugin"))
        {
            return;
        }
        checkCore(*plugin);
        if (!build(*plugin))
        {
            return;
        }
        std::unique_ptr<IPluginV3> copy{plugin->clone()};
        if (!note(copy != nullptr, "clone() gave no plugin"))
        {
            return;
        }
        Fields const serialized = serialize(*plugin);
        note(serialize(*copy) == serialized, "a clone serializes other fields");
        // A clone stands on its own.
        plugin.reset();
        note(serialize(*copy) == serialized, "a clone changed when the plugin it came from was destroyed");
        Expressions again{mNbOutputs, mProblems};
        note(evaluate(*buildOf(*copy), again, true).shapes == mShapes.shapes, "a clone computes other shapes");
        copy.reset();

        mJson.key("serialized");
        serialized.write(mJson);
        Fields stored = serialized;
        std::unique_ptr<IPluginV3> engine{
            mCreator.createPlugin(mCase.label.c_str(), stored.collection(), TensorRTPhase::kRUNTIME)};
        if (!note(engine != nullptr, "the creator does not take its own serialized fields"))
        {
            return;
        }
        checkCore(*engine);
        note(serialize(*engine) == serialized, "the fields change when they are serialized again");
        ResourceContext context;
        auto* const runtime = runtimeOf(*engine);
        if (!note(runtime != nullptr, "no runtime capability"))
        {
            return;
        }
        std::unique_ptr<IPluginV3> attached{runtime->attachToContext(&context)};
        if (!note(attached != nullptr && attached.get() != engine.get(), "attachToContext() gave no plugin of its own"))
        {
            static_cast<void>(attached.release());
            return;
        }
        std::unique_ptr<IPluginV3> second{runtime->attachToContext(&context)};
        note(second != nullptr && second.get() != attached.get(), "a second context got no plugin of its own");
        second.reset();
        // TensorRT may let go of the engine's plugin first.
        engine.reset();
        note(serialize(*attached) == serialized, "an attached plugin serializes other fields");
        start(*attached, folder);
    }

private:
    Fields serialize(IPluginV3& plugin)
    {
        auto* const runtime = runtimeOf(plugin);
        PluginFieldCollection const* const fields = runtime == nullptr ? nullptr : runtime->getFieldsToSerialize();
        note(fields != nullptr, "getFieldsToSerialize() gave nothing");
        return Fields{fields};
    }

    void checkCore(IPluginV3& plugin)
    {
        auto* const core =
            static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
        if (note(core != nullptr, "no core capability"))
        {
            note(core->getPluginName() == mCase.type, std::string{"the plugin is called "} + core->getPluginName());
            note(core->getPluginVersion() == mCase.version,
                std::string{"the plugin has version "} + core->getPluginVersion());
            note(core->getPluginNamespace() == mCase.space,
                std::string{"the plugin has namespace "} + core->getPluginNamespace());
        }
    }

    IPluginCreatorV3One& mCreator;
};

// ----------------------------------------------------------------------------------------------------------- library

using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);

class Library
{
public:
    Library(char const* path, LoggerFinder& finder)
        : mHandle(dlopen(path, RTLD_NOW | RTLD_LOCAL))
    {
        if (mHandle == nullptr)
        {
            throw std::runtime_error(dlerror());
        }
        auto const setFinder = reinterpret_cast<SetLoggerFinder>(dlsym(mHandle, "setLoggerFinder"));
        auto const getCreators = reinterpret_cast<GetCreators>(dlsym(mHandle, "getCreators"));
        if (setFinder == nullptr || getCreators == nullptr)
        {
            throw std::runtime_error(std::string{path} + " exports no setLoggerFinder or no getCreators");
        }
        setFinder(&finder);
        int32_t count = 0;
        auto* const creators = getCreators(count);
        for (int32_t i = 0; i < count; ++i)
        {
            auto const info = creators[i]->getInterfaceInfo();
            if (std::string{info.kind} != "PLUGIN CREATOR_V3ONE")
            {
                throw std::runtime_error(std::string{"a creator is of kind "} + info.kind);
            }
            mCreators.push_back(static_cast<IPluginCreatorV3One*>(creators[i]));
        }
    }

    ~Library()
    {
        dlclose(mHandle);
    }

    Library(Library const&) = delete;
    Library& operator=(Library const&) = delete;

    IPluginCreatorV3One* find(Case const& wanted) const
    {
        for (auto* creator : mCreators)
        {
            if (creator->getPluginName() == wanted.type && creator->getPluginVersion() == wanted.version
                && creator->getPluginNamespace() == wanted.space)
            {
                return creator;
            }
        }
        return nullptr;
    }

    void write(Json& json) const
    {
        json.begin('{')
            .key("tensorrt")
            .text(std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR));
        json.key("creators").begin('[');
        for (auto* creator : mCreators)
        {
            json.begin('{').key("name").text(creator->getPluginName()).key("version").text(creator->getPluginVersion());
            json.key("namespace").text(creator->getPluginNamespace()).key("fields");
            Fields{creator->getFieldNames()}.write(json);
            json.end('}');
        }
        json.end(']').end('}');
    }

private:
    void* mHandle;
    std::vector<IPluginCreatorV3One*> mCreators;
};

int runAll(char const* libraryPath, char const* requestPath, std::string const& folder)
{
    Logger logger;
    LoggerFinder finder{logger};
    Library const library{libraryPath, finder};
    Json about;
    library.write(about);
    std::cout << about.str() << std::endl;
    readRequest(requestPath,
        [&](Case const& wanted)
        {
            Json json;
            Problems problems;
            json.begin('{').key("case").text(wanted.label);
            logger.errors.clear();
            IPluginCreatorV3One* const creator = library.find(wanted);
            if (creator == nullptr)
            {
                problems.push_back("no creator " + wanted.type + " " + wanted.version + " " + wanted.space);
            }
            else
            {
                Life life{wanted, *creator, logger, json, problems};
                wanted.refuse ? life.refuse() : life.run(folder);
            }
            json.key("errors").texts(logger.errors);
            json.key("problems").texts(std::set<std::string>{problems.begin(), problems.end()}).end('}');
            std::cout << json.str() << std::endl;
        });
    return 0;
}

} // namespace
} // namespace trtc::harness

int main(int argc, char** argv)
{
    bool const enqueue = argc == 5 && std::strcmp(argv[3], "--enqueue") == 0;
    if (argc != 3 && !enqueue)
    {
        std::cerr << "usage: plugin_harness LIBRARY REQUEST [--enqueue FOLDER]\n";
        return 2;
    }
    try
    {
        return trtc::harness::runAll(argv[1], argv[2], enqueue ? argv[4] : "");
    }
    catch (std::exception const& error)
    {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
