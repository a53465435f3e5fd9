"""Columns of a lowered plan row: 16 floats, one 64-byte line of float32.

Every backend reads a row through these names, and through nothing else.
"""

A = 0  # x' = A x + B m + sum_k W_k h_k + C z
B = 1
C = 2
P = 3  # m = P x + Q F
Q = 4
Q2 = 5  # weight of a second network output (a mixture)
C_IN = 6  # next network input u = C_IN x'
W0 = 7  # history slots 0 .. 3
SLOTS = 4
PUSH = 11  # slot that receives m, or -1
DRAW = 12  # number of the noise draw, an integer below 2^24
CLIP = 13  # bound on |m|, or 0 for none
SNR = 14  # Langevin: step = min(SNR |z|^2 / |m|^2, CAP), B = step, C = sqrt(2 step)
CAP = 15
WIDTH = 16

CHANNELS = 8  # at most, of a network output that a GPU reads with its channels last; more are copied first
LANES = 1024  # partial sums of a per-sample reduction (see ops/norms.py)
