from quant import *
