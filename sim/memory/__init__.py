"""SRAM banks and their conflicts, DRAM, and where every byte goes."""
