// Open the directory that is deployed, and make sure that what is used of it is what was written.
#pragma once

#include "manifest.h"

#include <memory>
#include <string>

namespace trtc::runtime
{

//! The content of a file, in memory or mapped from the descriptor that it was hashed by.
class Content
{
public:
    Content() = default;
    Content(Content const&) = delete;
    Content& operator=(Content const&) = delete;
    ~Content();

    char const* data() const noexcept
    {
        return mMapped != nullptr ? static_cast<char const*>(mMapped) : mText.data();
    }

    size_t size() const noexcept
    {
        return mMapped != nullptr ? mSize : mText.size();
    }

private:
    friend class Bundle;
    std::string mText;
    void* mMapped = nullptr;
    size_t mSize = 0;
};

class Bundle
{
public:
    //! Open it: the manifest is read and checked, every file that it lists is there, a regular file inside the bundle,
    //! of the size it should have; code and weights that it does not list are refused. Throws Error.
    Bundle(std::string const& path, bool checkHashes, std::string const& requiredDigest);

    Manifest const& manifest() const noexcept
    {
        return mManifest;
    }

    std::string const& manifestText() const noexcept
    {
        return mManifestText;
    }

    //! The content of a listed file, which was compared with its hash; the same one each time it is asked for.
    std::shared_ptr<Content const> content(std::string const& name);

    //! The same, read anew: for what is asked for once a bundle was loaded.
    std::shared_ptr<Content const> read(std::string const& name) const;

    //! Compare the hash of every file whose content was not asked for.
    void checkRest();

    //! Let go of what was read, once it was loaded.
    void forget();

private:
    std::string mPath, mRoot, mManifestText;
    bool mCheckHashes;
    Manifest mManifest;
    std::map<std::string, std::shared_ptr<Content const>> mContents;
    std::set<std::string> mChecked;

    int open(std::string const& name) const;
    void checkHash(std::string const& name, std::string const& found) const;
    void refuseUnlisted() const;
};

} // namespace trtc::runtime
