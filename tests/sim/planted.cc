#include "tests/sim/planted.h"

namespace kvcfs::meta {
int planted_bug = 0;
}

namespace kvcfs::sim {
namespace {

constexpr Planted kPlanted[] = {
    {1, "shard: a block with children is evicted"},
    {2, "shard: leases do not keep a block from eviction"},
    {3, "shard: a copy that is not published yet counts as another when one is released"},
    {4, "shard: an answer of an older epoch is taken"},
    {5, "holder: orders of another epoch are carried out"},
    {6, "shard: goes on answering when its own lease ran out"},
    {7, "shard: answers before all holders told what they have"},
    {8, "shard: a new owner does not reckon with the old one's leases"},
    {9, "shard: a block is published without its parent being told"},
    {10, "shard: a block that is being dropped accepts children"},
    {11, "shard: a late Detach removes a newer child"},
    {12, "shard: a block is visible before its holders have it as published"},
    {13, "shard: the second commit of a key wins"},
    {14, "shard: views that were skipped are not noticed"},
    {15, "shard: a dropped block goes before those that extend it"},
    {16, "holder: a grant of an older epoch is taken"},
    {17, "holder: tells also of copies that were never published"},
    {18, "client: does not compare the key and the generation of what it reads"},
    {19, "client: groups behind a gap count"},
    {20, "client: goes on using what it remembers after the lease"},
    {21, "shard: what parents promised under an older view still counts"},
    {22, "shard: does not wait for the copies of a first block"},
    {23, "holder: what it has published is not written down"},
    {24, "shard: keeps its copies of first blocks when the view changes"},
    {25, "shard: lost copies are not made again"},
    {26, "shard: copies of a holder that began anew are trusted"},
    {27, "client: does not compare length and checksum"},
    {28, "holder: Forget takes any later generation too"},
    {29, "shard: orphans are kept"},
    {30, "shard: answers requests of another epoch"},
    {31, "shard: a new owner removes blocks while the old one may still answer"},
    {32, "shard: a copy that moves is given up before the new one is published"},
    {33, "shard: copies on holders that are drained count"},
    {34, "shard: who is drained evicts what it has"},
    {35, "shard: a copy that moved stays where it was"},
    {36, "holder: a copy from another holder is not compared with what it should be"},
    {37, "holder: a copy that nobody publishes stays"},
    {38, "holder: a published copy can be discarded"},
    {39, "shard: a grant of a release counts only if its answer comes in time"},
    {40, "shard: an inventory brings back what was forgotten while it was under way"},
    {41, "shard: a late Unpoint removes a newer pointer"},
    {42, "shard: pointers are not loaded"},
    {43, "shard: what a holder had goes with it at once"},
    {44, "shard: what extends blocks of a holder that is away goes"},
    {45, "shard: blocks of a holder that is away are still found"},
    {46, "shard: a commit takes the place of what came back before it was published"},
    {47, "shard: what matches said stays in the table when it changes"},
};

}  // namespace

std::span<const Planted> AllPlanted() {
  return kPlanted;
}

}  // namespace kvcfs::sim
