#include "bundle.h"

#include "error.h"
#include "sha256.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trtc::runtime
{
namespace
{

constexpr char const* kAGAIN = "copy the bundle again from where it was made, or export it again";
constexpr int64_t kSMALL = int64_t{64} << 20; // bytes of a file that is taken into memory whole
constexpr size_t kCHUNK = size_t{1} << 20;
constexpr size_t kMOST_FILES = 10000;
constexpr size_t kDEEPEST_FOLDER = 64;

//! A descriptor that is closed where its name ends.
class Descriptor
{
public:
    explicit Descriptor(int value) noexcept
        : mValue(value)
    {
    }

    Descriptor(Descriptor const&) = delete;
    Descriptor& operator=(Descriptor const&) = delete;

    ~Descriptor()
    {
        if (mValue >= 0)
        {
            ::close(mValue);
        }
    }

    int get() const noexcept
    {
        return mValue;
    }

private:
    int mValue;
};

std::string realPath(std::string const& path)
{
    char* const found = ::realpath(path.c_str(), nullptr);
    std::string const made = found == nullptr ? "" : found;
    std::free(found);
    return made;
}

bool isBelow(std::string const& path, std::string const& root)
{
    return path.size() > root.size() + 1 && path.compare(0, root.size(), root) == 0
        && (root.back() == '/' || path[root.size()] == '/');
}

//! Open a regular file inside a folder. Returns -1 with errno; ELOOP where it leads out, EINVAL where it is no file.
int openInside(std::string const& path, std::string const& root)
{
    std::string const real = realPath(path);
    if (real.empty())
    {
        return -1;
    }
    struct stat status = {};
    if (!isBelow(real, root))
    {
        errno = ELOOP;
        return -1;
    }
    if (::stat(real.c_str(), &status) != 0)
    {
        return -1;
    }
    if (!S_ISREG(status.st_mode)) // before it is opened: some devices do something when they are
    {
        errno = EINVAL;
        return -1;
    }
    int const opened = ::open(real.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (opened < 0)
    {
        return -1;
    }
    // A folder on the way may have become a link in between.
    std::string const there = realPath("/proc/self/fd/" + std::to_string(opened));
    bool const isInside = there.empty() || isBelow(there, root);
    if (!isInside || ::fstat(opened, &status) != 0 || !S_ISREG(status.st_mode))
    {
        ::close(opened);
        errno = isInside ? EINVAL : ELOOP;
        return -1;
    }
    return opened;
}

Error unreadable(std::string const& path, int code)
{
    std::string const what = code == ELOOP ? "it is a link out of the bundle"
        : code == EINVAL                   ? "it is no regular file"
                                           : std::strerror(code);
    std::string const advice = code == ELOOP || code == EINVAL ? "put the file itself there"
        : code == EACCES || code == EPERM                      ? "check its permissions"
                                                               : kAGAIN;
    return bundleError("'" + shown(path, 300) + "' cannot be read (" + what + "); " + advice + ".");
}

std::string readAll(int descriptor, size_t limit, std::string const& path)
{
    std::string found;
    for (;;)
    {
        size_t const before = found.size();
        size_t const wanted = std::min(kCHUNK, limit + 1 - before);
        found.resize(before + wanted);
        ssize_t const got = ::read(descriptor, &found[before], wanted);
        if (got < 0 && errno == EINTR)
        {
            found.resize(before);
            continue;
        }
        if (got < 0)
        {
            throw unreadable(path, errno);
        }
        found.resize(before + static_cast<size_t>(got));
        if (got == 0 || found.size() > limit)
        {
            return found;
        }
    }
}

bool isHexDigest(std::string const& text)
{
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

//! Whether a file of this name could be code or weights.
bool couldBeLoaded(std::string name)
{
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char each) { return std::tolower(each); });
    for (;;) // libfoo.so.1.2 too
    {
        auto const dot = name.rfind('.');
        if (dot == std::string::npos)
        {
            return false;
        }
        std::string const ending = name.substr(dot + 1);
        if (ending.empty() || ending.find_first_not_of("0123456789") != std::string::npos)
        {
            static std::set<std::string> const kKINDS = {"py", "pyc", "pyo", "pyd", "pyw", "pyz", "pth", "so", "dll",
                "dylib", "onnx", "ort", "data", "onnx_data", "bin", "weights", "safetensors", "gguf", "pt", "pt2",
                "ckpt", "pkl", "pickle", "engine", "plan", "trt"};
            return kKINDS.count(ending) != 0;
        }
        name.resize(dot);
    }
}

//! An engine that a build has just put where it puts them, and not listed yet.
bool isEngineOfBuild(std::string const& name)
{
    std::string const ending = ".engine";
    return name.compare(0, 8, "engines/") == 0 && name.size() > ending.size()
        && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
}

} // namespace

Content::~Content()
{
    if (mMapped != nullptr)
    {
        ::munmap(mMapped, mSize);
    }
}

Bundle::Bundle(std::string const& path, bool checkHashes, std::string const& requiredDigest)
    : mPath(path)
    , mRoot(realPath(path))
    , mCheckHashes(checkHashes)
{
    std::string required = requiredDigest;
    std::transform(required.begin(), required.end(), required.begin(), [](unsigned char c) { return std::tolower(c); });
    if (!required.empty() && !isHexDigest(required))
    {
        throw configError("'" + shown(requiredDigest, 80)
            + "' is no digest of a bundle; give all 64 hexadecimal digits, "
              "as 'trt-compress inspect BUNDLE' shows them where the bundle was made.");
    }
    struct stat status = {};
    if (mRoot.empty() || ::stat(mRoot.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))
    {
        throw bundleError("'" + shown(path, 300) + "' " + (mRoot.empty() ? "does not exist" : "is not a directory")
            + "; give the directory that export wrote.");
    }
    Descriptor const file(openInside(mRoot + "/manifest.json", mRoot));
    if (file.get() < 0)
    {
        if (errno == ENOENT)
        {
            throw bundleError("'" + shown(path, 300)
                + "' is not a bundle: it has no manifest.json; give the directory that export wrote.");
        }
        throw unreadable(path + "/manifest.json", errno);
    }
    mManifestText = readAll(file.get(), kLARGEST_MANIFEST, path + "/manifest.json");
    mManifest = readManifest(mManifestText.data(), mManifestText.size(), path + "/manifest.json");
    if (!required.empty() && mManifest.digest != required)
    {
        throw bundleError("The bundle '" + shown(path, 300) + "' has the digest " + mManifest.digest + ", and "
            + required + " is required; it is another bundle or was changed: take the one that is meant.");
    }
    refuseUnlisted();
    for (auto const& [name, info] : mManifest.files)
    {
        Descriptor const opened(open(name));
    }
}

int Bundle::open(std::string const& name) const
{
    auto const info = mManifest.files.find(name);
    if (info == mManifest.files.end())
    {
        throw bundleError("The bundle '" + shown(mPath, 300) + "' has no file '" + shown(name) + "'.");
    }
    int const opened = openInside(mRoot + "/" + name, mRoot);
    if (opened < 0)
    {
        if (errno == ENOENT || errno == ENOTDIR)
        {
            throw bundleError(
                "The bundle '" + shown(mPath, 300) + "' lacks its file '" + shown(name) + "'; " + kAGAIN + ".");
        }
        throw unreadable(mPath + "/" + name, errno);
    }
    struct stat status = {};
    if (::fstat(opened, &status) != 0 || status.st_size != info->second.bytes)
    {
        ::close(opened);
        throw bundleError("'" + shown(name) + "' in the bundle '" + shown(mPath, 300) + "' was changed: it has "
            + std::to_string(status.st_size) + " bytes, not " + std::to_string(info->second.bytes) + "; " + kAGAIN
            + ".");
    }
    return opened;
}

void Bundle::checkHash(std::string const& name, std::string const& found) const
{
    if (found != mManifest.files.at(name).sha256)
    {
        throw bundleError("'" + shown(name) + "' in the bundle '" + shown(mPath, 300)
            + "' was changed: its hash differs; " + kAGAIN + ".");
    }
}

std::shared_ptr<Content const> Bundle::read(std::string const& name) const
{
    Descriptor const file(open(name));
    auto const made = std::make_shared<Content>();
    auto const size = static_cast<size_t>(mManifest.files.at(name).bytes);
    if (mManifest.files.at(name).bytes <= kSMALL)
    {
        made->mText = readAll(file.get(), size, mPath + "/" + name);
        if (made->mText.size() != size)
        {
            throw bundleError("'" + shown(name) + "' in the bundle '" + shown(mPath, 300)
                + "' was changed: its length changed while it was read; " + kAGAIN + ".");
        }
    }
    else
    {
        void* const mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
        if (mapped == MAP_FAILED)
        {
            throw unreadable(mPath + "/" + name, errno);
        }
        made->mMapped = mapped;
        made->mSize = size;
    }
    if (mCheckHashes)
    {
        checkHash(name, sha256(made->data(), made->size()));
    }
    return made;
}

std::shared_ptr<Content const> Bundle::content(std::string const& name)
{
    auto& held = mContents[name];
    if (held == nullptr)
    {
        held = read(name);
        mChecked.insert(name);
    }
    return held;
}

void Bundle::checkRest()
{
    for (auto const& [name, info] : mManifest.files)
    {
        if (mCheckHashes && mChecked.insert(name).second)
        {
            Descriptor const file(open(name));
            Sha256 hash;
            std::string buffer(kCHUNK, '\0');
            for (;;)
            {
                ssize_t const got = ::read(file.get(), buffer.data(), buffer.size());
                if (got < 0 && errno == EINTR)
                {
                    continue;
                }
                if (got < 0)
                {
                    throw unreadable(mPath + "/" + name, errno);
                }
                if (got == 0)
                {
                    break;
                }
                hash.add(buffer.data(), static_cast<size_t>(got));
            }
            checkHash(name, hash.hex());
        }
    }
}

void Bundle::forget()
{
    mContents.clear();
}

void Bundle::refuseUnlisted() const
{
    std::vector<std::pair<std::string, size_t>> folders = {{"", 0}};
    size_t count = 0;
    while (!folders.empty())
    {
        auto const [inside, depth] = folders.back();
        folders.pop_back();
        std::unique_ptr<DIR, int (*)(DIR*)> const opened(::opendir((mRoot + "/" + inside).c_str()), &::closedir);
        while (dirent const* const entry = opened == nullptr ? nullptr : ::readdir(opened.get()))
        {
            if (entry->d_name[0] == '.')
            {
                continue;
            }
            std::string const name = inside + entry->d_name;
            struct stat status = {};
            if (++count > kMOST_FILES || depth > kDEEPEST_FOLDER)
            {
                throw bundleError("The bundle '" + shown(mPath, 300) + "' holds more than "
                    + std::to_string(kMOST_FILES)
                    + " files, so that it is no bundle of ours alone; give a folder with nothing else in it.");
            }
            if (::lstat((mRoot + "/" + name).c_str(), &status) == 0 && S_ISDIR(status.st_mode))
            {
                folders.emplace_back(name + "/", depth + 1);
            }
            else if (couldBeLoaded(entry->d_name) && mManifest.files.count(name) == 0 && !isEngineOfBuild(name))
            {
                throw bundleError("The bundle '" + shown(mPath, 300) + "' holds '" + shown(name)
                    + "', which its manifest does not list and which could be code or weights; take it out of the "
                      "folder, or copy the bundle again from where it was made.");
            }
        }
    }
}

} // namespace trtc::runtime
