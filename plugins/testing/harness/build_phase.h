// What TensorRT asks a plugin while it builds an engine: types, shapes, formats, tactics, workspace.
#pragma once

#include "json.h"
#include "request.h"
#include "stand_ins.h"

#include <functional>

namespace trtc::harness
{

using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneBuildV2;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int32_t kNUM_FORMATS = 13;
constexpr int64_t kMAX_QUERIES = 2000000;

inline Dims dimsOf(std::vector<int64_t> const& sizes)
{
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

inline std::vector<int64_t> sizesOf(Tensor const& tensor, Sizes const& binding)
{
    std::vector<int64_t> sizes;
    for (auto const& dim : tensor.dims)
    {
        sizes.push_back(dim.axis.empty() ? dim.value : binding.at(dim.axis));
    }
    return sizes;
}

inline int64_t volumeOf(std::vector<int64_t> const& sizes)
{
    int64_t volume = 1;
    for (int64_t size : sizes)
    {
        volume *= size;
    }
    return volume;
}

inline PluginTensorDesc describe(DataType type, std::vector<int64_t> const& sizes)
{
    return {dimsOf(sizes), type, TensorFormat::kLINEAR, 1.0F};
}

// The steps note what broke a rule and write what Python compares with SPEC.
class BuildPhase
{
public:
    BuildPhase(Case const& wanted, Logger& logger, Json& json, Problems& problems)
        : mCase(wanted)
        , mLogger(logger)
        , mJson(json)
        , mProblems(problems)
    {
    }

protected:
    struct Shapes
    {
        // For each binding, for each output.
        std::vector<std::vector<std::vector<int64_t>>> shapes;
        std::vector<std::vector<Expression const*>> expressions;
    };

    bool note(bool fine, std::string const& problem)
    {
        if (!fine)
        {
            mProblems.push_back(problem);
        }
        return fine;
    }

    static IPluginV3OneBuild* buildOf(IPluginV3& plugin)
    {
        return static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    }

    int32_t nbInputs() const
    {
        return static_cast<int32_t>(mCase.inputs.size());
    }

    // Shapes of the outputs; with `symbolic` the axes that are not known when building are symbols, else numbers.
    Shapes evaluate(IPluginV3OneBuild& build, Expressions& expressions, bool symbolic)
    {
        Shapes found;
        std::vector<Sizes> const bindings = symbolic ? mCase.bindings : std::vector<Sizes>{mCase.bindings[0]};
        std::vector<nvinfer1::DimsExprs> inputs;
        for (auto const& tensor : mCase.inputs)
        {
            nvinfer1::DimsExprs dims{};
            dims.nbDims = static_cast<int32_t>(tensor.dims.size());
            for (size_t d = 0; d < tensor.dims.size(); ++d)
            {
                auto const& dim = tensor.dims[d];
                dims.d[d] =
                    dim.axis.empty() || !symbolic ? expressions.constant(dim.value) : expressions.symbol(dim.axis);
            }
            inputs.push_back(dims);
        }
        std::vector<nvinfer1::DimsExprs> outputs(static_cast<size_t>(mNbOutputs));
        for (auto& output : outputs)
        {
            output.nbDims = -7;
        }
        int32_t const status =
            build.getOutputShapes(inputs.data(), nbInputs(), nullptr, 0, outputs.data(), mNbOutputs, expressions);
        if (!note(status == 0, "getOutputShapes() failed"))
        {
            return found;
        }
        for (auto const& output : outputs)
        {
            std::vector<Expression const*> dims;
            bool known = output.nbDims >= 0 && output.nbDims <= nvinfer1::Dims::MAX_DIMS;
            for (int32_t d = 0; known && d < output.nbDims; ++d)
            {
                dims.push_back(expressions.find(output.d[d]));
                known = dims.back() != nullptr;
            }
            if (!note(known, "getOutputShapes() left an output without dimensions"))
            {
                return found;
            }
            found.expressions.push_back(dims);
        }
        for (auto const& binding : bindings)
        {
            std::vector<std::vector<int64_t>> shapes;
            for (auto const& dims : found.expressions)
            {
                std::vector<int64_t> sizes;
                for (auto const* dim : dims)
                {
                    sizes.push_back(dim->evaluate(binding));
                    if (!note(sizes.back() >= 0 && sizes.back() <= INT32_MAX,
                            "an output has a dimension of " + std::to_string(sizes.back())))
                    {
                        return {};
                    }
                }
                shapes.push_back(sizes);
            }
            found.shapes.push_back(shapes);
        }
        return found;
    }

    DynamicPluginTensorDesc dynamicDesc(
        DataType type, std::vector<bool> const& isDynamic, std::vector<std::vector<int64_t>> const& sizes) const
    {
        std::vector<int64_t> known = sizes[0];
        std::vector<int64_t> low = sizes[0];
        std::vector<int64_t> high = sizes[0];
        for (size_t d = 0; d < known.size(); ++d)
        {
            known[d] = isDynamic[d] ? -1 : known[d];
            for (auto const& other : sizes)
            {
                low[d] = std::min(low[d], other[d]);
                high[d] = std::max(high[d], other[d]);
            }
        }
        return {describe(type, known), dimsOf(low), dimsOf(high), dimsOf(sizes[0])};
    }

    std::vector<DynamicPluginTensorDesc> inputDescs() const
    {
        std::vector<DynamicPluginTensorDesc> descs;
        for (auto const& tensor : mCase.inputs)
        {
            std::vector<bool> isDynamic;
            for (auto const& dim : tensor.dims)
            {
                isDynamic.push_back(!dim.axis.empty());
            }
            std::vector<std::vector<int64_t>> sizes;
            for (auto const& binding : mCase.bindings)
            {
                sizes.push_back(sizesOf(tensor, binding));
            }
            descs.push_back(dynamicDesc(tensor.type, isDynamic, sizes));
        }
        return descs;
    }

    std::vector<DynamicPluginTensorDesc> outputDescs() const
    {
        std::vector<DynamicPluginTensorDesc> descs;
        for (size_t o = 0; o < mOutputTypes.size(); ++o)
        {
            std::vector<bool> isDynamic;
            for (auto const* dim : mShapes.expressions[o])
            {
                isDynamic.push_back(!dim->isConstant());
            }
            std::vector<std::vector<int64_t>> sizes;
            for (auto const& shapes : mShapes.shapes)
            {
                sizes.push_back(shapes[o]);
            }
            descs.push_back(dynamicDesc(mOutputTypes[o], isDynamic, sizes));
        }
        return descs;
    }

    bool build(IPluginV3& plugin)
    {
        auto* const build = buildOf(plugin);
        if (!note(build != nullptr, "no build capability"))
        {
            return false;
        }
        mNbOutputs = build->getNbOutputs();
        mJson.key("num_outputs").number(mNbOutputs);
        if (!note(mNbOutputs > 0 && mNbOutputs < 16, "an impossible number of outputs"))
        {
            return false;
        }
        std::vector<DataType> inputTypes;
        for (auto const& tensor : mCase.inputs)
        {
            inputTypes.push_back(tensor.type);
        }
        mOutputTypes.assign(static_cast<size_t>(mNbOutputs), static_cast<DataType>(-1));
        int32_t const status =
            build->getOutputDataTypes(mOutputTypes.data(), mNbOutputs, inputTypes.data(), nbInputs());
        if (!note(status == 0, "getOutputDataTypes() failed"))
        {
            return false;
        }
        mJson.key("output_types").begin('[');
        for (DataType type : mOutputTypes)
        {
            mJson.text(nameOf(type));
            note(type != DataType::kBOOL && type != DataType::kUINT8, "a plugin's output cannot be BOOL or UINT8");
        }
        mJson.end(']');

        mExpressions = std::make_unique<Expressions>(mNbOutputs, mProblems);
        mShapes = evaluate(*build, *mExpressions, true);
        if (mShapes.shapes.empty())
        {
            return false;
        }
        Expressions constants{mNbOutputs, mProblems};
        Shapes const fixed = evaluate(*build, constants, false);
        note(!fixed.shapes.empty() && fixed.shapes[0] == mShapes.shapes[0],
            "shapes differ between known and unknown sizes");
        mJson.key("output_shapes").begin('[');
        for (auto const& shapes : mShapes.shapes)
        {
            mJson.begin('[');
            for (auto const& shape : shapes)
            {
                mJson.numbers(shape);
            }
            mJson.end(']');
        }
        mJson.end(']').key("size_tensors").numbers(mExpressions->sizeTensors());
        for (int32_t index : mExpressions->sizeTensors())
        {
            auto const o = static_cast<size_t>(index);
            note(mOutputTypes[o] == DataType::kINT32 && mShapes.expressions[o].empty(),
                "size tensor " + std::to_string(index) + " is not an INT32 without dimensions");
        }

        checkFormats(*build);
        checkWrongCounts(*build, inputTypes);
        auto const inputs = inputDescs();
        auto const outputs = outputDescs();
        // TensorRT configures for every combination of types it tries, so more than once.
        for (int i = 0; i < 2; ++i)
        {
            note(build->configurePlugin(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
                "configurePlugin() failed");
        }
        checkTactics(*build);
        mWorkspaceBytes = build->getWorkspaceSize(inputs.data(), nbInputs(), outputs.data(), mNbOutputs);
        mJson.key("workspace_bytes").number(static_cast<int64_t>(mWorkspaceBytes));
        char const* const timing = build->getTimingCacheID();
        mJson.key("timing_cache_id");
        timing == nullptr ? mJson.null() : mJson.text(timing);

        auto const info = build->getInterfaceInfo();
        mJson.key("build_interface").number(info.major).key("aliases").begin('[');
        mAliases.assign(static_cast<size_t>(mNbOutputs), -1);
        for (int32_t o = 0; o < mNbOutputs; ++o)
        {
            // Only the second version of the interface has the question.
            if (info.major >= 2)
            {
                mAliases[static_cast<size_t>(o)] = static_cast<IPluginV3OneBuildV2*>(build)->getAliasedInput(o);
            }
            int32_t const alias = mAliases[static_cast<size_t>(o)];
            mJson.number(alias);
            bool fits = alias == -1;
            if (alias >= 0 && alias < nbInputs())
            {
                auto const& input = mCase.inputs[static_cast<size_t>(alias)];
                fits = input.type == mOutputTypes[static_cast<size_t>(o)]
                    && sizesOf(input, mCase.bindings[0]) == mShapes.shapes[0][static_cast<size_t>(o)];
            }
            note(fits, "output " + std::to_string(o) + " is aliased with something of another shape or type");
        }
        mJson.end(']');
        return true;
    }

    // Everything after `pos` is made up: a plugin may look at what is before only.
    static void scramble(std::vector<DynamicPluginTensorDesc>& descs, size_t from, size_t salt)
    {
        for (size_t i = from; i < descs.size(); ++i)
        {
            auto const& types = typeNames();
            descs[i].desc.type = types[(i * 5U + salt) % types.size()].type;
            descs[i].desc.format = static_cast<TensorFormat>((i * 3U + salt) % kNUM_FORMATS);
        }
    }

    void checkFormats(IPluginV3OneBuild& build)
    {
        auto descs = inputDescs();
        auto const outputs = outputDescs();
        descs.insert(descs.end(), outputs.begin(), outputs.end());
        std::vector<std::vector<std::string>> accepted;
        int64_t queries = 0;
        bool looksAhead = false;
        bool otherFormats = false;
        std::function<void(size_t)> const go = [&](size_t pos)
        {
            if (pos == descs.size())
            {
                std::vector<std::string> names;
                for (auto const& desc : descs)
                {
                    names.push_back(nameOf(desc.desc.type));
                    otherFormats = otherFormats || desc.desc.format != TensorFormat::kLINEAR;
                }
                accepted.push_back(names);
                return;
            }
            for (auto const& type : typeNames())
            {
                for (int32_t format = 0; format < kNUM_FORMATS && queries < kMAX_QUERIES; ++format)
                {
                    bool isAccepted = false;
                    // Looking ahead shows with the one format that plugins take.
                    size_t const numSalts =
                        static_cast<TensorFormat>(format) == TensorFormat::kLINEAR ? typeNames().size() : 1U;
                    for (size_t salt = 0; salt < numSalts; ++salt)
                    {
                        scramble(descs, pos + 1U, salt);
                        descs[pos].desc.type = type.type;
                        descs[pos].desc.format = static_cast<TensorFormat>(format);
                        ++queries;
                        bool const answer = build.supportsFormatCombination(
                            static_cast<int32_t>(pos), descs.data(), nbInputs(), mNbOutputs);
                        looksAhead = looksAhead || (salt > 0U && answer != isAccepted);
                        isAccepted = answer;
                    }
                    if (isAccepted)
                    {
                        go(pos + 1U);
                    }
                }
            }
        };
        go(0U);
        note(queries < kMAX_QUERIES, "too many format combinations to try");
        note(!looksAhead, "supportsFormatCombination() looks at tensors after pos");
        note(!otherFormats, "a format other than linear is accepted");
        note(static_cast<int64_t>(accepted.size()) <= build.getFormatCombinationLimit(),
            "more format combinations are accepted than getFormatCombinationLimit() says");
        mJson.key("format_combinations").begin('[');
        for (auto const& names : accepted)
        {
            mJson.texts(names);
        }
        mJson.end(']');
    }

    void checkWrongCounts(IPluginV3OneBuild& build, std::vector<DataType> const& inputTypes)
    {
        // What is logged here is as it should be.
        std::vector<std::string> const before = mLogger.errors;
        std::vector<DataType> types(static_cast<size_t>(mNbOutputs));
        note(build.getOutputDataTypes(types.data(), mNbOutputs, inputTypes.data(), nbInputs() - 1) != 0,
            "getOutputDataTypes() takes too few inputs");
        Expressions expressions{mNbOutputs, mProblems};
        std::vector<nvinfer1::DimsExprs> inputs(mCase.inputs.size());
        std::vector<nvinfer1::DimsExprs> outputs(static_cast<size_t>(mNbOutputs));
        for (auto& input : inputs)
        {
            input.nbDims = 1;
            input.d[0] = expressions.constant(4);
        }
        note(build.getOutputShapes(inputs.data(), nbInputs() - 1, nullptr, 0, outputs.data(), mNbOutputs, expressions)
                != 0,
            "getOutputShapes() takes too few inputs");
        note(build.getOutputShapes(inputs.data(), nbInputs(), nullptr, 0, outputs.data(), mNbOutputs, expressions) != 0
                || takesVectors(),
            "getOutputShapes() takes inputs of the wrong rank");
        mLogger.errors = before;
    }

    bool takesVectors() const
    {
        return std::all_of(
            mCase.inputs.begin(), mCase.inputs.end(), [](Tensor const& t) { return t.dims.size() == 1U; });
    }

    void checkTactics(IPluginV3OneBuild& build)
    {
        int32_t const count = build.getNbTactics();
        mTactics.assign(static_cast<size_t>(std::max(count, 0)), 0);
        note(count >= 0, "a negative number of tactics");
        if (count > 0)
        {
            note(build.getValidTactics(mTactics.data(), count) == 0, "getValidTactics() failed");
        }
        std::set<int32_t> const unique{mTactics.begin(), mTactics.end()};
        note(unique.size() == mTactics.size() && unique.count(0) == 0U, "tactics must be unique and not zero");
        mJson.key("tactics").numbers(mTactics);
    }

    Case const& mCase;
    Logger& mLogger;
    Json& mJson;
    Problems& mProblems;
    int32_t mNbOutputs{0};
    std::vector<DataType> mOutputTypes;
    std::unique_ptr<Expressions> mExpressions;
    Shapes mShapes;
    std::vector<int32_t> mTactics;
    std::vector<int32_t> mAliases;
    size_t mWorkspaceBytes{0U};
};

} // namespace trtc::harness
