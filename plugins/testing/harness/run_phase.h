// What TensorRT asks a plugin of an engine: tactics, changes of shapes, enqueue, also in a captured graph.
#pragma once

#include "build_phase.h"
#include "guarded.h"

#include <cstring>

namespace trtc::harness
{

using nvinfer1::IPluginV3OneRuntime;

constexpr int kOUTPUT_FILL = 0xcc;
constexpr int kWORKSPACE_FILL = 0xdd;

class RunPhase : public BuildPhase
{
public:
    using BuildPhase::BuildPhase;

protected:
    static IPluginV3OneRuntime* runtimeOf(IPluginV3& plugin)
    {
        return static_cast<IPluginV3OneRuntime*>(
            plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    }

    std::vector<PluginTensorDesc> inputsAt(Sizes const& binding) const
    {
        std::vector<PluginTensorDesc> descs;
        for (auto const& tensor : mCase.inputs)
        {
            descs.push_back(describe(tensor.type, sizesOf(tensor, binding)));
        }
        return descs;
    }

    std::vector<PluginTensorDesc> outputsAt(size_t binding) const
    {
        std::vector<PluginTensorDesc> descs;
        for (size_t o = 0; o < mOutputTypes.size(); ++o)
        {
            descs.push_back(describe(mOutputTypes[o], mShapes.shapes[binding][o]));
        }
        return descs;
    }

    void start(IPluginV3& plugin, std::string const& folder)
    {
        auto* const runtime = runtimeOf(plugin);
        std::vector<int32_t> const tactics = mTactics.empty() ? std::vector<int32_t>{0} : mTactics;
        for (size_t t = 0; t < tactics.size(); ++t)
        {
            // Tactic 0 means that the plugin has none.
            note(runtime->setTactic(tactics[t]) == 0, "setTactic() failed");
            // The first binding last, so that it is the one that runs.
            for (size_t b = mCase.bindings.size(); b-- > 0U;)
            {
                auto const inputs = inputsAt(mCase.bindings[b]);
                auto const outputs = outputsAt(b);
                note(runtime->onShapeChange(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
                    "onShapeChange() failed");
            }
            if (!folder.empty())
            {
                Result const result =
                    enqueue(*runtime, folder + (t == 0U ? "" : "/tactic" + std::to_string(tactics[t])), t == 0U);
                changeShapes(*runtime, tactics[t], result);
            }
        }
    }

    struct Result
    {
        int32_t status{0};
        std::vector<std::vector<unsigned char>> outputs;
    };

    // One run on fresh memory. `alias`: outputs that may be are written into their inputs.
    Result runOnce(IPluginV3OneRuntime& runtime, std::vector<std::vector<unsigned char>> const& data, bool alias,
        bool inGraph, std::string const& name, size_t binding = 0U)
    {
        auto const inputs = inputsAt(mCase.bindings[binding]);
        auto const outputs = outputsAt(binding);
        std::vector<std::unique_ptr<Guarded>> inputMemory;
        std::vector<std::unique_ptr<Guarded>> outputMemory;
        std::vector<void const*> inputPointers;
        std::vector<void*> outputPointers;
        for (auto const& bytes : data)
        {
            inputMemory.push_back(std::make_unique<Guarded>(bytes.size()));
            inputPointers.push_back(inputMemory.back()->data());
        }
        for (size_t o = 0; o < outputs.size(); ++o)
        {
            outputMemory.push_back(std::make_unique<Guarded>(
                static_cast<size_t>(volumeOf(mShapes.shapes[binding][o]) * bytesOf(mOutputTypes[o]))));
            bool const inPlace = alias && mAliases[o] >= 0;
            outputPointers.push_back(
                inPlace ? inputMemory[static_cast<size_t>(mAliases[o])]->data() : outputMemory.back()->data());
        }
        Guarded workspace{mWorkspaceBytes};
        auto const refill = [&]
        {
            for (size_t i = 0; i < data.size(); ++i)
            {
                inputMemory[i]->upload(data[i]);
            }
            for (auto& memory : outputMemory)
            {
                memory->fill(kOUTPUT_FILL);
            }
            workspace.fill(kWORKSPACE_FILL);
            must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        };
        cudaStream_t stream{};
        must(cudaStreamCreate(&stream), "cudaStreamCreate");
        Result result;
        refill();
        auto const call = [&]
        {
            return runtime.enqueue(
                inputs.data(), outputs.data(), inputPointers.data(), outputPointers.data(), workspace.data(), stream);
        };
        if (inGraph)
        {
#ifndef TRTC_EMULATED_CUDA
            cudaGraph_t graph{};
            cudaGraphExec_t executable{};
            must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
            result.status = call();
            must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
            must(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
            for (int launch = 0; launch < 2; ++launch)
            {
                refill();
                must(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
                must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
            }
            must(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
            must(cudaGraphDestroy(graph), "cudaGraphDestroy");
#endif
        }
        else
        {
            result.status = call();
        }
        cudaError_t const finished = cudaStreamSynchronize(stream);
        note(finished == cudaSuccess, name + ": " + cudaGetErrorString(finished));
        note(cudaGetLastError() == cudaSuccess, name + " left an error behind for cudaGetLastError()");
        must(cudaStreamDestroy(stream), "cudaStreamDestroy");
        for (size_t i = 0; i < data.size(); ++i)
        {
            bool const written =
                alias && std::find(mAliases.begin(), mAliases.end(), static_cast<int32_t>(i)) != mAliases.end();
            note(inputMemory[i]->guardsAreWhole(), name + " wrote beyond input " + mCase.inputs[i].name);
            note(written || inputMemory[i]->download() == data[i], name + " wrote into input " + mCase.inputs[i].name);
        }
        for (size_t o = 0; o < outputs.size(); ++o)
        {
            bool const inPlace = alias && mAliases[o] >= 0;
            note(outputMemory[o]->guardsAreWhole(), name + " wrote beyond output " + std::to_string(o));
            result.outputs.push_back(
                (inPlace ? inputMemory[static_cast<size_t>(mAliases[o])] : outputMemory[o])->download());
        }
        note(workspace.guardsAreWhole(), name + " wrote beyond its workspace");
        return result;
    }

    bool read(size_t binding, std::vector<std::vector<unsigned char>>& data)
    {
        for (auto const& tensor : mCase.inputs)
        {
            auto const path = mCase.data[binding].find(tensor.name);
            std::ifstream file{path == mCase.data[binding].end() ? "" : path->second, std::ios::binary};
            data.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
            auto const wanted =
                static_cast<size_t>(volumeOf(sizesOf(tensor, mCase.bindings[binding])) * bytesOf(tensor.type));
            if (!note(data.back().size() == wanted, "no data of the right size for input " + tensor.name))
            {
                return false;
            }
        }
        return true;
    }

    bool changeTo(IPluginV3OneRuntime& runtime, size_t binding)
    {
        auto const inputs = inputsAt(mCase.bindings[binding]);
        auto const outputs = outputsAt(binding);
        return note(runtime.onShapeChange(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
            "onShapeChange() failed");
    }

    // Other sizes, and the first ones after them, must give what a plugin gives that knows no other sizes.
    void changeShapes(IPluginV3OneRuntime& runtime, int32_t tactic, Result const& first)
    {
        size_t changes = 0U;
        for (size_t b = 1U; b < mCase.bindings.size(); ++b)
        {
            std::vector<std::vector<unsigned char>> data;
            if (mCase.data[b].empty() || !read(b, data))
            {
                continue;
            }
            ResourceContext context;
            std::unique_ptr<IPluginV3> const fresh{runtime.attachToContext(&context)};
            if (!note(fresh != nullptr, "a further context got no plugin"))
            {
                return;
            }
            auto* const alone = runtimeOf(*fresh);
            note(alone->setTactic(tactic) == 0, "setTactic() failed");
            if (!changeTo(*alone, b) || !changeTo(runtime, b))
            {
                return;
            }
            Result const wanted = runOnce(*alone, data, true, false, "enqueue of other sizes by a new plugin", b);
            Result const found = runOnce(runtime, data, true, false, "enqueue after a change of shapes", b);
            note(wanted.status == 0 && found.status == 0, "enqueue() fails after a change of shapes");
            note(found.outputs == wanted.outputs, "a change of shapes gives other bits than a new plugin");
            ++changes;
        }
        std::vector<std::vector<unsigned char>> data;
        if (changes > 0U && changeTo(runtime, 0U) && read(0U, data))
        {
            Result const again = runOnce(runtime, data, true, false, "enqueue after shapes changed back");
            note(again.outputs == first.outputs, "shapes that changed back give other bits");
        }
        mJson.key("changes").number(static_cast<int64_t>(changes));
    }

    Result enqueue(IPluginV3OneRuntime& runtime, std::string const& folder, bool first)
    {
        std::vector<std::vector<unsigned char>> data;
        if (!read(0U, data))
        {
            return {};
        }
        Result const result = runOnce(runtime, data, true, false, "enqueue");
        note(result.status == 0, "enqueue() returned " + std::to_string(result.status));
        Result const again = runOnce(runtime, data, true, false, "the second enqueue");
        note(again.outputs == result.outputs, "a second run gives other bits");
        if (std::any_of(mAliases.begin(), mAliases.end(), [](int32_t alias) { return alias >= 0; }))
        {
            Result const apart = runOnce(runtime, data, false, false, "enqueue with an output of its own");
            note(apart.status == 0 && apart.outputs == result.outputs, "in place and copied outputs differ");
        }
        bool const captured = mExpressions->sizeTensors().empty();
#ifdef TRTC_EMULATED_CUDA
        std::string const graph = "skipped: CUDA is emulated";
#else
        std::string const graph = captured ? "ran" : "skipped: a size depends on the data";
        if (captured)
        {
            Result const replayed = runOnce(runtime, data, true, true, "enqueue in a captured graph");
            note(replayed.status == 0 && replayed.outputs == result.outputs, "a captured graph gives other bits");
        }
#endif
        static_cast<void>(captured);
        Measured measured;
        for (int32_t index : mExpressions->sizeTensors())
        {
            int32_t value = 0;
            std::memcpy(&value, result.outputs[static_cast<size_t>(index)].data(), sizeof(value));
            measured[index] = value;
        }
        if (first)
        {
            mJson.key("graph").text(graph).key("outputs").begin('[');
        }
        for (size_t o = 0; o < result.outputs.size(); ++o)
        {
            std::vector<int64_t> sizes;
            for (auto const* dim : mShapes.expressions[o])
            {
                sizes.push_back(dim->evaluate(mCase.bindings[0], measured));
            }
            auto const bytes = static_cast<size_t>(volumeOf(sizes) * bytesOf(mOutputTypes[o]));
            if (!note(bytes <= result.outputs[o].size(), "a measured size is above its upper bound"))
            {
                continue;
            }
            std::string const path = folder + "/" + mCase.label + "." + std::to_string(o);
            std::ofstream file{path, std::ios::binary};
            file.write(reinterpret_cast<char const*>(result.outputs[o].data()), static_cast<std::streamsize>(bytes));
            if (first)
            {
                mJson.begin('{').key("path").text(path).key("shape").numbers(sizes).end('}');
            }
        }
        if (first)
        {
            mJson.end(']');
        }
        return result;
    }
};

} // namespace trtc::harness
