// The part of the C interface that reads tokens.

#include "api_call.h"

using namespace trtc::runtime;

extern "C" {

trtc_status trtc_sequences_new(
    trtc_session const* session, trtc_states_options const* options, trtc_sequences** sequences)
{
    if (sequences != nullptr)
    {
        *sequences = nullptr;
    }
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(sequences, "sequences");
            trtc_states_options const given = known(options);
            auto made = std::make_unique<trtc_sequences>();
            made->sequences = std::make_unique<Sequences>(session->loaded, given.batch, given.capacity);
            made->states.states = &made->sequences->states();
            *sequences = made.release();
        });
}

void trtc_sequences_free(trtc_sequences** sequences)
{
    if (sequences != nullptr)
    {
        delete *sequences;
        *sequences = nullptr;
    }
}

size_t trtc_sequences_count(trtc_sequences const* sequences)
{
    return sequences == nullptr ? 0 : sequences->sequences->seen().size();
}

size_t trtc_sequences_vocabulary(trtc_sequences const* sequences)
{
    return sequences == nullptr ? 0 : sequences->sequences->vocabulary();
}

trtc_status trtc_sequences_seen(trtc_sequences const* sequences, int64_t* seen, size_t count)
{
    return guarded(
        [&]
        {
            needs(sequences, "sequences");
            needs(seen, "seen");
            auto const& found = sequences->sequences->seen();
            if (count < found.size())
            {
                throw shapeError("There are " + std::to_string(found.size()) + " sequences, and the buffer has "
                    + std::to_string(count) + "; give a larger one.");
            }
            std::copy(found.begin(), found.end(), seen);
        });
}

trtc_status trtc_sequences_attend(trtc_sequences* sequences, trtc_tensor const* inputs, size_t num_inputs)
{
    return guarded(
        [&]
        {
            needs(sequences, "sequences");
            if (num_inputs != 0)
            {
                needs(inputs, "inputs");
            }
            Sequences& held = *sequences->sequences;
            Claim const claim(held.states());
            std::vector<std::pair<Port const*, View>> given;
            for (size_t at = 0; at < num_inputs; ++at)
            {
                needs(inputs[at].name, "the name of a tensor");
                auto const& ports = held.mediaInputs();
                auto const found = std::find_if(
                    ports.begin(), ports.end(), [&](Port const* port) { return port->whole == inputs[at].name; });
                if (found == ports.end())
                {
                    throw configError("Input '" + shown(inputs[at].name) + "' is not known.");
                }
                given.emplace_back(*found, viewOf(inputs[at], **found));
            }
            held.attend(given);
        });
}

trtc_status trtc_sequences_read(
    trtc_sequences* sequences, int64_t const* const* texts, size_t const* lengths, trtc_tensor* logits)
{
    return guarded(
        [&]
        {
            needs(sequences, "sequences");
            needs(texts, "texts");
            needs(lengths, "lengths");
            needs(logits, "logits");
            Claim const claim(sequences->sequences->states());
            sequences->sequences->read(texts, lengths, *logits);
        });
}

trtc_status trtc_sequences_step(
    trtc_sequences* sequences, int64_t const* tokens, uint8_t const* ended, trtc_tensor* logits)
{
    return guarded(
        [&]
        {
            needs(sequences, "sequences");
            needs(tokens, "tokens");
            needs(logits, "logits");
            Claim const claim(sequences->sequences->states());
            sequences->sequences->step(tokens, ended, *logits);
        });
}

trtc_status trtc_sequences_keep(trtc_sequences* sequences, size_t const* rows, size_t num_rows)
{
    return guarded(
        [&]
        {
            needs(sequences, "sequences");
            Claim const claim(sequences->sequences->states());
            sequences->sequences->keep(rowsOf(rows, num_rows));
        });
}

trtc_states* trtc_sequences_states(trtc_sequences* sequences)
{
    return sequences == nullptr ? nullptr : &sequences->states;
}

} // extern "C"
