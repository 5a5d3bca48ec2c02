//! What others change in nf_tables, as whole transactions. (Part 4 builds the answer to it; here is the hearing.)
