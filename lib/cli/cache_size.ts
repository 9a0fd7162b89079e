/**
 * How much memory the tables of images may take in commands.
 *
 * @module
 */

/**
 * The most bytes of L2 tables to keep of each image. Commands go over a disk from its beginning to its end, so that a table is not
 * needed again once it is behind them: this maps 8 GiB at a time where clusters have 64 KiB.
 */
export const CACHE_SIZE = 1024 * 1024;
