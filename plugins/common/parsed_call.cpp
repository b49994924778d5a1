#include "common/parsed_call.h"

#include <deque>

namespace trtc
{

namespace
{
bool typeOf(TrtcTensor const& tensor, DType& dtype)
{
    for (DType const known : kDTYPES)
    {
        if (onnxNumber(known) == tensor.dtype)
        {
            dtype = known;
            return true;
        }
    }
    return false;
}

Error readTensor(
    Contract const& contract, TensorContract const& wanted, TrtcTensor const& given, Shape& shape, DType& dtype)
{
    if (!typeOf(given, dtype))
    {
        return contract.opType() + ": " + wanted.name + " has the type number " + std::to_string(given.dtype)
            + ", which is none of ONNX's that are known here.";
    }
    shape.assign(given.shape, given.shape + given.rank);
    return {};
}

Error checkType(Contract const& contract, TensorContract const& wanted, DType dtype, DTypes const& allowed)
{
    std::string names;
    for (DType const type : allowed)
    {
        if (type == dtype)
        {
            return {};
        }
        names += (names.empty() ? "" : " or ") + std::string(nameOf(type));
    }
    return contract.opType() + ": " + wanted.name + " is " + nameOf(dtype) + "; it must be " + names + ".";
}

Error countsOf(Contract const& contract)
{
    return contract.opType() + ": it has " + std::to_string(contract.attributes.size()) + " attributes, "
        + std::to_string(contract.inputs.size()) + " inputs and " + std::to_string(contract.outputs.size())
        + " outputs.";
}

//! Expressions as text that Python and C read alike.
class TextBuilder final : public SizeBuilder
{
public:
    SymbolicSize size(std::string text)
    {
        return {keep(std::move(text)), *this};
    }

    std::string const& textOf(SymbolicSize size)
    {
        return text(size.in(*this));
    }

    Expression constant(int64_t value) override
    {
        return keep(std::to_string(value));
    }

    Expression sum(Expression a, Expression b) override
    {
        return operation(a, " + ", b);
    }

    Expression difference(Expression a, Expression b) override
    {
        return operation(a, " - ", b);
    }

    Expression product(Expression a, Expression b) override
    {
        return operation(a, " * ", b);
    }

    Expression quotient(Expression a, Expression b) override
    {
        return operation(a, " // ", b);
    }

    Expression decidedByData(int32_t output, int64_t usual, int64_t largest) override
    {
        return keep(
            "data(" + std::to_string(output) + ", " + std::to_string(usual) + ", " + std::to_string(largest) + ")");
    }

private:
    Expression keep(std::string text)
    {
        mTexts.push_back(std::move(text));
        return &mTexts.back();
    }

    Expression operation(Expression a, char const* sign, Expression b)
    {
        return keep("(" + text(a) + sign + text(b) + ")");
    }

    static std::string const& text(Expression expression) noexcept
    {
        return *static_cast<std::string const*>(expression);
    }

    std::deque<std::string> mTexts;
};

//! `[[a, b], []]`
template <typename Size, typename ToText>
std::string jsonOf(SizeLists<Size> const& lists, ToText const& toText)
{
    std::string text;
    for (std::vector<Size> const& sizes : lists)
    {
        text += text.empty() ? "[" : ", [";
        for (size_t i = 0; i < sizes.size(); ++i)
        {
            text += (i == 0 ? "" : ", ") + toText(sizes[i]);
        }
        text += "]";
    }
    return "[" + text + "]";
}
} // namespace

Error parseCall(std::vector<Contract const*> const& contracts, TrtcCall const& call, ParsedCall& parsed)
{
    auto const found = std::find_if(contracts.begin(), contracts.end(),
        [&](Contract const* contract) { return contract->opType() == call.op_type; });
    if (found == contracts.end())
    {
        return std::string("this library has no operator ") + call.op_type + ".";
    }
    parsed.number = static_cast<size_t>(found - contracts.begin());
    parsed.contract = *found;
    Contract const& contract = *parsed.contract;
    if (static_cast<size_t>(call.num_attributes) != contract.attributes.size()
        || static_cast<size_t>(call.num_inputs) != contract.inputs.size())
    {
        return countsOf(contract);
    }
    for (size_t i = 0; i < contract.attributes.size(); ++i)
    {
        TrtcAttribute const& given = call.attributes[i];
        parsed.attributes.add(contract.attributes[i], {given.integers, given.integers + given.count}, given.real);
    }
    Error error = checkAttributes(contract, parsed.attributes);
    for (size_t i = 0; error.empty() && i < contract.inputs.size(); ++i)
    {
        TensorContract const& wanted = contract.inputs[i];
        Shape shape;
        DType dtype{};
        error = readTensor(contract, wanted, call.inputs[i], shape, dtype);
        DTypes allowed = wanted.dtypes;
        for (size_t leader = 0; wanted.sameDtypeAs != nullptr && leader < i; ++leader)
        {
            if (std::strcmp(contract.inputs[leader].name, wanted.sameDtypeAs) == 0)
            {
                allowed = {parsed.inputTypes[leader]};
            }
        }
        error = error.empty() ? checkType(contract, wanted, dtype, allowed) : error;
        parsed.inputs.push_back(std::move(shape));
        parsed.inputTypes.push_back(dtype);
    }
    error = error.empty() ? shapesOf(contract, parsed.attributes, parsed.inputs, parsed.outputs) : error;
    if (error.empty())
    {
        parsed.outputTypes = outputTypesOf(contract, parsed.attributes, parsed.inputTypes);
    }
    return error;
}

Error checkOutputs(TrtcCall const& call, ParsedCall const& parsed)
{
    Contract const& contract = *parsed.contract;
    if (static_cast<size_t>(call.num_outputs) != contract.outputs.size())
    {
        return countsOf(contract);
    }
    for (size_t i = 0; i < contract.outputs.size(); ++i)
    {
        TensorContract const& wanted = contract.outputs[i];
        Shape shape;
        DType dtype{};
        Error error = readTensor(contract, wanted, call.outputs[i], shape, dtype);
        error = error.empty() ? checkType(contract, wanted, dtype, {parsed.outputTypes[i]}) : error;
        if (error.empty())
        {
            error = checkShape(wanted.name, shape, parsed.outputs[i], "MMMMM");
            error = error.empty() ? error : contract.opType() + ": " + error;
        }
        if (!error.empty())
        {
            return error;
        }
    }
    return {};
}

std::string describeOutputs(ParsedCall const& parsed)
{
    TextBuilder builder;
    SizeLists<SymbolicSize> inputs;
    for (size_t i = 0; i < parsed.inputs.size(); ++i)
    {
        inputs.emplace_back();
        for (size_t axis = 0; axis < parsed.inputs[i].size(); ++axis)
        {
            inputs.back().push_back(builder.size(parsed.contract->inputs[i].name + ("[" + std::to_string(axis) + "]")));
        }
    }
    std::string dtypes;
    for (DType const dtype : parsed.outputTypes)
    {
        dtypes += (dtypes.empty() ? "\"" : ", \"") + std::string(nameOf(dtype)) + "\"";
    }
    auto const formulas = parsed.contract->symbolicShapes(parsed.attributes, inputs);
    return "{\"dtypes\": [" + dtypes + "], \"shapes\": "
        + jsonOf(parsed.outputs, [](int64_t size) { return std::to_string(size); }) + ", \"formulas\": "
        + jsonOf(formulas, [&](SymbolicSize size) { return "\"" + builder.textOf(size) + "\""; }) + "}";
}

int32_t outputShapes(std::vector<Contract const*> const& contracts, TrtcCall const& call, char* text, size_t textBytes,
    char* message, size_t messageBytes) noexcept
{
    return answer(
        [&]
        {
            ParsedCall parsed;
            Error error = parseCall(contracts, call, parsed);
            copyText(error.empty() ? describeOutputs(parsed) : Error{}, text, textBytes);
            return error;
        },
        message, messageBytes);
}

} // namespace trtc
