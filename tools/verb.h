// The verbs of the command: each adds itself to the command line in its own file.
//
// A verb's callback runs after all of the line was understood and leaves the exit code:
// 0 done, 1 failed or damaged or partial, 2 misused. Results go to stdout, messages to stderr.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace CLI {
class App;
}  // namespace CLI

namespace kvcfs::tools {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitMisused = 2;

void AddMountVerb(CLI::App& app, int& exit_code);
void AddServeVerb(CLI::App& app, int& exit_code);
void AddClusterVerb(CLI::App& app, int& exit_code);
void AddUnmountVerb(CLI::App& app, int& exit_code);
void AddLookupVerb(CLI::App& app, int& exit_code);
void AddStatVerb(CLI::App& app, int& exit_code);
void AddTopVerb(CLI::App& app, int& exit_code);
void AddDropVerb(CLI::App& app, int& exit_code);
void AddReplayVerb(CLI::App& app, int& exit_code);
void AddTraceVerb(CLI::App& app, int& exit_code);
void AddFsckVerb(CLI::App& app, int& exit_code);
void AddDoctorVerb(CLI::App& app, int& exit_code);
void AddVersionVerb(CLI::App& app, int& exit_code);

// "kvcfs lookup: TEXT" on stderr.
int Fail(std::string_view verb, std::string_view text);
int Misuse(std::string_view verb, std::string_view text);
// kInvalid is misuse, all else failure.
int FailWith(std::string_view verb, const Error& error);

// Whole text on stdout. kExitFailed, with a message, where that cannot be (a full disk, a closed
// pipe).
int Print(std::string_view verb, std::string_view text);

}  // namespace kvcfs::tools
