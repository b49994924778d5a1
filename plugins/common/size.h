// Sizes of outputs that are not numbers yet. An operator writes the shapes of its outputs once, as a template over
// int64_t and SymbolicSize: the first for a run, the second for what TensorRT must know while it builds. Host code
// only.
#pragma once

#include <cstdint>
#include <vector>

namespace trtc
{

template <typename Size>
using SizeLists = std::vector<std::vector<Size>>;

//! A size that is known only when the operator has run.
constexpr int64_t kDATA_DEPENDENT = -1;

//! Whoever knows what an expression is: TensorRT's builder, or one that writes text.
class SizeBuilder
{
public:
    using Expression = void const*; //!< Lives as long as the builder.

    virtual Expression constant(int64_t value) = 0;
    virtual Expression sum(Expression a, Expression b) = 0;
    virtual Expression difference(Expression a, Expression b) = 0;
    virtual Expression product(Expression a, Expression b) = 0;
    //! a / b, rounded down.
    virtual Expression quotient(Expression a, Expression b) = 0;
    //! What output `output`, an INT32 without axes, holds when the operator has run: usually `usual`, at most
    //! `largest`.
    virtual Expression decidedByData(int32_t output, int64_t usual, int64_t largest) = 0;

protected:
    ~SizeBuilder() = default;
};

//! A number, or an expression of a builder. Sizes and divisors are not negative, so a quotient is as that of numbers.
class SymbolicSize
{
public:
    SymbolicSize(int64_t number) noexcept // as every size beside it may be a number
        : mNumber(number)
    {
    }

    SymbolicSize(SizeBuilder::Expression expression, SizeBuilder& builder) noexcept
        : mExpression(expression)
        , mBuilder(&builder)
    {
    }

    SizeBuilder::Expression in(SizeBuilder& builder) const
    {
        return mBuilder == nullptr ? builder.constant(mNumber) : mExpression;
    }

    friend SymbolicSize operator+(SymbolicSize a, SymbolicSize b)
    {
        return operation(a, b, [](int64_t x, int64_t y) { return x + y; }, &SizeBuilder::sum);
    }

    friend SymbolicSize operator-(SymbolicSize a, SymbolicSize b)
    {
        return operation(a, b, [](int64_t x, int64_t y) { return x - y; }, &SizeBuilder::difference);
    }

    friend SymbolicSize operator*(SymbolicSize a, SymbolicSize b)
    {
        return operation(a, b, [](int64_t x, int64_t y) { return x * y; }, &SizeBuilder::product);
    }

    friend SymbolicSize operator/(SymbolicSize a, SymbolicSize b)
    {
        return operation(a, b, [](int64_t x, int64_t y) { return x / y; }, &SizeBuilder::quotient);
    }

    //! Beside `any` size of an input, since numbers have no builder.
    friend SymbolicSize decidedByData(SymbolicSize any, int32_t output, int64_t usual, int64_t largest)
    {
        return {any.mBuilder->decidedByData(output, usual, largest), *any.mBuilder};
    }

private:
    using Build = SizeBuilder::Expression (SizeBuilder::*)(SizeBuilder::Expression, SizeBuilder::Expression);

    template <typename Compute>
    static SymbolicSize operation(SymbolicSize a, SymbolicSize b, Compute const& compute, Build build)
    {
        SizeBuilder* const builder = a.mBuilder == nullptr ? b.mBuilder : a.mBuilder;
        if (builder == nullptr)
        {
            return compute(a.mNumber, b.mNumber);
        }
        return {(builder->*build)(a.in(*builder), b.in(*builder)), *builder};
    }

    int64_t mNumber{0};
    SizeBuilder::Expression mExpression{nullptr};
    SizeBuilder* mBuilder{nullptr};
};

inline int64_t decidedByData(int64_t /*any*/, int32_t /*output*/, int64_t /*usual*/, int64_t /*largest*/) noexcept
{
    return kDATA_DEPENDENT;
}

} // namespace trtc
