//! What a compaction leaves: the same content, at lower cost, whoever else is at work.
