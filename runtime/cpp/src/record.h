// The fields of the manifest's objects: their types are checked by one table, which also says what the digest covers.
#pragma once

#include "json.h"

#include <string>

namespace trtc::runtime
{

//! Check the types of a manifest's fields, all the way down. Throws Error, which names the field.
void checkManifestFields(Json const& manifest, std::string const& where);

//! The digest of a manifest whose fields were checked: the hash of what version 1.0 defines, `digest` and
//! `schema_version` left out, written as canonical JSON.
std::string digestOf(Json const& manifest);

//! Names that a field may hold, by the table's word for them: "ROLES", "FEEDS", ….
bool isWord(char const* table, std::string const& word);

} // namespace trtc::runtime
