// What every function of the C interface does: handles are checked, exceptions become a status and a sentence.
#pragma once

#include "error.h"
#include "sequences.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

struct trtc_session
{
    std::shared_ptr<trtc::runtime::Loaded> loaded;
};

struct trtc_states
{
    std::unique_ptr<trtc::runtime::States> mine; //!< null where sequences own them
    trtc::runtime::States* states;
};

struct trtc_sequences
{
    std::unique_ptr<trtc::runtime::Sequences> sequences;
    trtc_states states;
};

namespace trtc::runtime
{

//! The sentence of the last call on this thread that failed.
inline std::string& lastError() noexcept
{
    thread_local std::string text;
    return text;
}

inline trtc_status failed(trtc_status status, char const* message) noexcept
{
    try
    {
        lastError() = message;
    }
    catch (...)
    {
        lastError().clear();
    }
    return status;
}

template <typename Call>
trtc_status guarded(Call const& call) noexcept
{
    try
    {
        call();
        return TRTC_OK;
    }
    catch (Error const& error)
    {
        return failed(error.status(), error.what());
    }
    catch (std::bad_alloc const&)
    {
        return failed(
            TRTC_ERROR_MEMORY, "There is no memory for this; run fewer sequences, or give a smaller capacity.");
    }
    catch (std::exception const& error)
    {
        return failed(TRTC_ERROR_INTERNAL, error.what());
    }
    catch (...)
    {
        return failed(TRTC_ERROR_INTERNAL, "Something unknown was thrown; this is a fault of the library.");
    }
}

//! Throw if a pointer that is needed is NULL.
inline void needs(void const* pointer, char const* name)
{
    if (pointer == nullptr)
    {
        throw configError(std::string(name) + " is NULL; give one.");
    }
}

//! Has states, or what else is for one thread at a time, for itself, or refuses.
class Claim
{
public:
    explicit Claim(States& states)
        : Claim(states.isUsed, "states")
    {
    }

    Claim(std::atomic<bool>& isUsed, char const* what)
        : mIsUsed(isUsed)
    {
        if (mIsUsed.exchange(true, std::memory_order_acquire))
        {
            throw Error(TRTC_ERROR_BUSY,
                std::string("Another thread is using this handle of ") + what
                    + ", which holds the history of one caller; give each thread one of its own.");
        }
    }

    Claim(Claim const&) = delete;
    Claim& operator=(Claim const&) = delete;

    ~Claim()
    {
        mIsUsed.store(false, std::memory_order_release);
    }

private:
    std::atomic<bool>& mIsUsed;
};

//! Memory of the caller's that holds these bytes, and a 0 behind them. Throws std::bad_alloc.
inline char* copied(char const* data, size_t bytes)
{
    auto* const made = static_cast<char*>(std::malloc(bytes + 1));
    if (made == nullptr)
    {
        throw std::bad_alloc();
    }
    std::memcpy(made, data, bytes);
    made[bytes] = '\0';
    return made;
}

//! Options of the caller, in the form that this version knows.
template <typename Options>
Options known(Options const* given)
{
    Options made = {};
    if (given != nullptr)
    {
        if (given->size < sizeof(size_t))
        {
            throw configError(
                "The options have the size " + std::to_string(given->size) + "; set it to the size of their struct.");
        }
        std::memcpy(&made, given, std::min(given->size, sizeof(Options)));
    }
    return made;
}

inline std::string textOrNone(char const* text)
{
    return text == nullptr ? "" : text;
}

//! A caller's input as a view, once it is what the port takes.
inline View viewOf(trtc_tensor const& given, Port const& port)
{
    auto const what = [&port] { return "Input '" + shown(port.whole) + "'"; };
    if (given.dtype != port.dtype)
    {
        char const* const name = trtc_dtype_name(given.dtype);
        throw shapeError(what() + " is " + (name == nullptr ? "of no dtype" : name) + " and the graph takes "
            + trtc_dtype_name(port.dtype) + "; cast it.");
    }
    if (given.rank < 0 || given.rank > TRTC_MOST_AXES)
    {
        throw shapeError(what() + " has " + std::to_string(given.rank) + " axes; there are at most "
            + std::to_string(TRTC_MOST_AXES) + ".");
    }
    View made;
    made.rank = static_cast<size_t>(given.rank);
    size_t bytes = port.itemBytes;
    bool fits = true;
    for (size_t axis = 0; axis < made.rank; ++axis)
    {
        if (given.shape[axis] < 0)
        {
            throw shapeError(
                what() + " has the shape " + shapeText(given.shape, made.rank) + "; give one that there is.");
        }
        made.shape[axis] = given.shape[axis];
        fits = multiply(bytes, given.shape[axis]) && fits;
    }
    if (!fits || bytes > given.bytes || (given.data == nullptr && bytes != 0))
    {
        throw shapeError(what() + " of shape " + shapeText(given.shape, made.rank) + " takes "
            + (fits ? std::to_string(bytes) : "more") + " bytes, and "
            + (given.data == nullptr ? "its data are NULL" : std::to_string(given.bytes) + " were given") + ".");
    }
    made.data = static_cast<char*>(given.data);
    made.bytes = bytes;
    return made;
}

inline std::vector<size_t> rowsOf(size_t const* rows, size_t count)
{
    needs(rows, "rows");
    if (count > 65535)
    {
        throw configError("num_rows=" + std::to_string(count) + "; there are at most 65535 sequences.");
    }
    return {rows, rows + count};
}

} // namespace trtc::runtime
