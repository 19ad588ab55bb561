/*
 * kvcfs.h: asking a kvcfs namespace directly, from C or C++.
 *
 * Two ioctls on an open namespace directory (MNT/<namespace>, O_RDONLY | O_DIRECTORY). They carry
 * binary keys of 32 bytes, need no other file and no library. A directory that is not a kvcfs
 * namespace answers ENOTTY; more keys at once than KVCFS_MATCH_KEYS_MAX go through the namespace's
 * `match` file, which takes any number.
 *
 * How much of a prompt is cached:
 *
 *     int dir = open("/mnt/kvc/llama", O_RDONLY | O_DIRECTORY);
 *     union kvcfs_match match;
 *     memset(&match.request, 0, offsetof(struct kvcfs_match_request, keys));
 *     match.request.count = n;                          // at most KVCFS_MATCH_KEYS_MAX
 *     match.request.flags = KVCFS_MATCH_PREFETCH;       // I am going to read them
 *     memcpy(match.request.keys, keys, n * KVCFS_KEY_BYTES);
 *     if (ioctl(dir, KVCFS_IOC_MATCH, &match) != 0) return errno;
 *     printf("%u of %u blocks are cached, for at least %u ms\n", match.reply.count, n,
 *            match.reply.lease_ms);
 *
 * Numbers are in the host's byte order (both ends are on this host). Reserved fields: zero.
 */
#ifndef KVCFS_H
#define KVCFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define KVCFS_KEY_BYTES 32

/* As many as fit the 16,383 bytes that an ioctl's number can express. */
#define KVCFS_MATCH_KEYS_MAX 511

/* Flags of a match. */
#define KVCFS_MATCH_PREFETCH 1u /* matched blocks start to move into local memory */
#define KVCFS_MATCH_NOLEASE 2u  /* only asking: promise nothing */

/* Where a block is. */
#define KVCFS_TIER_NONE 0u
#define KVCFS_TIER_DRAM 1u
#define KVCFS_TIER_NVME 2u
#define KVCFS_TIER_PEER 3u /* on other nodes of the cluster only */

/* NOLINTBEGIN(readability-identifier-naming): names of C. */

/* The keys of a chain from its first block on, in order. */
struct kvcfs_match_request {
  uint32_t count; /* of keys: 1 to KVCFS_MATCH_KEYS_MAX */
  uint32_t flags;
  uint8_t pad[8];
  uint8_t keys[KVCFS_MATCH_KEYS_MAX][KVCFS_KEY_BYTES];
};

/* Of the first `count` keys each is cached, and stays so for lease_ms. 0 ms: no promise. */
struct kvcfs_match_reply {
  uint32_t count;
  uint32_t lease_ms;
  uint8_t pad[8];
  uint8_t tiers[KVCFS_MATCH_KEYS_MAX]; /* KVCFS_TIER_*, one for each of `count` */
  uint8_t pad2;
  uint32_t bytes[KVCFS_MATCH_KEYS_MAX]; /* length of each of `count` */
};

union kvcfs_match {
  struct kvcfs_match_request request;
  struct kvcfs_match_reply reply;
};

/*
 * Errors: EINVAL a count of 0 or above the limit, or an unknown flag; ENOTTY not a namespace.
 * Nothing cached is no error: count 0.
 */
#define KVCFS_IOC_MATCH _IOWR('K', 1, union kvcfs_match)

/* Flags of a drop. */
#define KVCFS_DROP_ALL 1u /* the whole namespace: its blocks and what is under files/ */

/* Drops a block and all that extends it, or everything. */
struct kvcfs_drop {
  uint8_t key[KVCFS_KEY_BYTES]; /* ignored with KVCFS_DROP_ALL */
  uint32_t flags;
  uint32_t pad;
  uint64_t dropped_blocks; /* out */
  uint64_t dropped_files;  /* out */
};

/* Errors: ENOENT the block is not cached; EINVAL an unknown flag; EACCES not the owner. */
#define KVCFS_IOC_DROP _IOWR('K', 2, struct kvcfs_drop)

#if defined(__cplusplus)
#define KVCFS_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define KVCFS_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif
KVCFS_STATIC_ASSERT(sizeof(struct kvcfs_match_request) == 16 + 511 * 32, "layout of a request");
KVCFS_STATIC_ASSERT(offsetof(struct kvcfs_match_reply, tiers) == 16, "layout of a reply");
KVCFS_STATIC_ASSERT(offsetof(struct kvcfs_match_reply, bytes) == 528, "layout of a reply");
KVCFS_STATIC_ASSERT(sizeof(union kvcfs_match) <= 16383, "an ioctl's number has 14 bits of size");
KVCFS_STATIC_ASSERT(sizeof(struct kvcfs_drop) == 56, "layout of a drop");

/* NOLINTEND(readability-identifier-naming) */

#endif /* KVCFS_H */
