"""Instruments: clocks of programs, their memory, limits of the device."""
