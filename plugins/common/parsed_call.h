// A call of the C interface, checked against the contract of its operator.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>

#include "common/call.h"
#include "common/contract.h"

namespace trtc
{

//! A call with what follows from its attributes and inputs.
struct ParsedCall
{
    Contract const* contract{nullptr};
    size_t number{0}; //!< of the contract
    Attributes attributes;
    Shapes inputs;
    Shapes outputs; //!< kDATA_DEPENDENT where the data decide
    DTypes inputTypes;
    DTypes outputTypes;
};

//! Everything but the outputs of `call`.
Error parseCall(std::vector<Contract const*> const& contracts, TrtcCall const& call, ParsedCall& parsed);

//! That the outputs of `call` are those that follow; -1 is any size.
Error checkOutputs(TrtcCall const& call, ParsedCall const& parsed);

//! What trtcOutputShapes() hands out.
std::string describeOutputs(ParsedCall const& parsed);

//! Cut at `bytes`, the last of which is 0.
inline void copyText(std::string const& from, char* to, size_t bytes) noexcept
{
    if (to != nullptr && bytes > 0)
    {
        size_t const length = std::min(from.size(), bytes - 1);
        std::memcpy(to, from.data(), length);
        to[length] = '\0';
    }
}

//! Runs `body`, which returns an Error, and hands the sentence out.
template <typename Body>
int32_t answer(Body const& body, char* message, size_t messageBytes) noexcept
{
    try
    {
        Error const error = body();
        copyText(error, message, messageBytes);
        return error.empty() ? 0 : 1;
    }
    catch (std::exception const&)
    {
        return 2;
    }
}

//! trtcOutputShapes() of a library that holds these contracts.
int32_t outputShapes(std::vector<Contract const*> const& contracts, TrtcCall const& call, char* text, size_t textBytes,
    char* message, size_t messageBytes) noexcept;

} // namespace trtc
